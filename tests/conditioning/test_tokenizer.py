import pytest
import torch

from latentdiff.conditioning.dropping import dropped_samples
from latentdiff.conditioning.tokenizer import ClipTokenizer, captions_of, drop_captions
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.types import Batch

START, END = 49406, 49407


def test_ids_are_those_of_open_clip():
    import open_clip

    captions = ["a red circle", "", "Two  Blue boxes, left of a star!"]
    ids, mask = ClipTokenizer(max_length=77)(captions)
    assert torch.equal(ids, open_clip.get_tokenizer("ViT-L-14")(captions))
    assert torch.equal(mask.sum(1), (ids == END).int().argmax(1) + 1)


def test_mask_is_true_on_real_tokens():
    tokenizer = ClipTokenizer(max_length=6)
    ids, mask = tokenizer(["a red circle", ""])
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
    assert mask.tolist() == [[True] * 5 + [False], [True] * 2 + [False] * 4]
    assert ids[0, 0] == ids[1, 0] == START
    assert ids[0, 4] == ids[1, 1] == END
    assert ids[~mask].abs().max() == 0
    assert tokenizer.truncated == 0


def test_truncation_keeps_the_end_and_is_counted():
    tokenizer = ClipTokenizer(max_length=5)
    whole, _ = ClipTokenizer(max_length=9)(["a red circle on blue"])
    ids, mask = tokenizer(["a red circle on blue", "a red circle", "a red circle on blue"])
    assert ids[0].tolist() == [*whole[0, :4].tolist(), END]
    assert mask.all()
    assert tokenizer.truncated == 2
    tokenizer(["a red circle on"])
    assert tokenizer.truncated == 3
    assert tokenizer.cut_captions(["a red circle", "a red circle on"]) == [("a red circle on", 6)]
    assert tokenizer.truncated == 3
    assert int(ids.max()) < ClipTokenizer.vocab_size


def test_captions_are_required():
    with pytest.raises(InputError, match="use data with captions"):
        captions_of(Batch(keys=["a"]))
    assert captions_of(Batch(keys=["a"], caption=["x"])) == ["x"]


def dropped(draws, captions, p=0.3):
    return [caption == "" for caption in drop_captions(captions, dropped_samples(draws, "text", p))]


def test_drop_rate_is_the_probability():
    count, p = 0, 0.3
    for number in range(200):
        draws = Draws(seed=1, number=number, start=0, count=50, total=50)
        count += sum(dropped(draws, ["x"] * 50, p))
    assert abs(count / 10_000 - p) < 3 * (p * (1 - p) / 10_000) ** 0.5


def test_dropping_does_not_depend_on_the_split_over_ranks():
    captions = [f"{i}" for i in range(12)]
    whole = dropped(Draws(seed=1, number=3, start=0, count=12, total=12), captions, 0.5)
    for ranks in (2, 3, 4):
        n = 12 // ranks
        parts = [
            dropped(Draws(seed=1, number=3, start=r * n, count=n, total=12), captions[r * n : (r + 1) * n], 0.5)
            for r in range(ranks)
        ]
        assert [one for part in parts for one in part] == whole
    assert 0 < sum(whole) < 12


def test_nothing_is_dropped_at_probability_zero_and_everything_at_one():
    captions = ["x"] * 64
    draws = Draws(seed=1, number=0, start=0, count=64, total=64)
    assert drop_captions(captions, dropped_samples(draws, "text", 0.0)) == captions
    assert drop_captions(captions, dropped_samples(draws, "text", 1.0)) == [""] * 64

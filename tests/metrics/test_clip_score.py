import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.metrics.clip_score import ClipScore
from latentdiff.metrics.on_features import Naming
from latentdiff.types import Batch


def columns(image, text, cut):
    return {"pool": torch.tensor(image), "text": torch.tensor(text), "caption_cut": torch.tensor(cut)[:, None]}


ROWS = columns(
    [[2.0, 0.0], [1.0, 1.0], [0.0, 3.0], [1.0, 0.0]],
    [[5.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]],
    [0.0, 1.0, 0.0, 0.0],
)


@pytest.mark.parametrize("part", [1, 3, None])
def test_mean_of_clamped_cosines(on_sets, part):
    # cosines 1, 1 / sqrt 2, 0, -1
    found = on_sets(ClipScore(), ROWS, part=part)
    assert found == {
        "clip_score_net_n4": pytest.approx(100 * (1 + 0.5**0.5) / 4, rel=1e-12),
        "captions_cut_net_n4": 0.25,
    }


def test_is_named_after_the_network_always(on_sets):
    naming = Naming("net", published=True, count=50_000)
    named = on_sets(lambda rows, _, __: ClipScore()(rows, None, naming), ROWS)
    assert list(named) == ["clip_score_net_n50000", "captions_cut_net_n50000"]


def test_refuses_samples_without_captions():
    ClipScore().check_samples(Batch(keys=["a"], caption=["a red square"]))
    for caption in (None, ["a red square", " "]):
        with pytest.raises(InputError, match="compares images with their captions, these samples have none"):
            ClipScore().check_samples(Batch(keys=["a", "b"], caption=caption))

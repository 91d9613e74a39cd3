import json

import open_clip
import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.models.open_clip_tokenizer import OpenClipTokenizer

SIZES = {"embed_dim": 8, "vision_cfg": {"image_size": 8, "layers": 1, "width": 8, "head_width": 8, "patch_size": 4}}
CAPTIONS = ["a red circle", "a red circle on white", "a red circle on a white star", ""]


def add_model(folder, name, **text):
    about = SIZES | {"text_cfg": {"vocab_size": 49408, "width": 8, "heads": 1, "layers": 1} | text}
    (folder / f"{name}.json").write_text(json.dumps(about))
    open_clip.add_model_config(folder)
    return name


def test_byte_pairs_are_open_clips_and_cut_captions_are_counted(tmp_path):
    tokenizer = OpenClipTokenizer(model=add_model(tmp_path, "latentdiff-test-pairs", context_length=7))
    assert torch.equal(tokenizer(CAPTIONS), open_clip.get_tokenizer("latentdiff-test-pairs")(CAPTIONS))
    assert tokenizer.truncated == 1  # 5, 7, 9 and 2 tokens
    assert tokenizer.cut_captions(CAPTIONS) == [(CAPTIONS[2], 9)]
    tokenizer(CAPTIONS[2:3] * 3)
    assert tokenizer.truncated == 4


def test_tokenizers_of_the_hub_too(tmp_path, bert):
    """Counted as they are cut: after this model's cleaning, which takes punctuation away."""
    about = {"hf_tokenizer_name": str(bert), "tokenizer_kwargs": {"clean": "canonicalize"}}
    name = add_model(tmp_path, "latentdiff-test-pieces", context_length=6, **about)
    tokenizer = OpenClipTokenizer(model=name)
    assert tokenizer.cut_captions(["a, red, circle, on..."]) == []
    assert torch.equal(tokenizer(CAPTIONS), open_clip.get_tokenizer(name)(CAPTIONS))
    assert tokenizer.truncated == 2
    assert tokenizer.cut_captions(CAPTIONS) == [(CAPTIONS[1], 7), (CAPTIONS[2], 9)]


def test_one_that_cannot_be_had_or_counted_is_an_input_error(tmp_path, bert):
    name = add_model(tmp_path, "latentdiff-test-nowhere", hf_tokenizer_name=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="tokenizer of open_clip's latentdiff-test-nowhere could not be loaded"):
        OpenClipTokenizer(model=name)
    name = add_model(tmp_path, "latentdiff-test-clips", hf_tokenizer_name=str(bert), tokenizer_mode="clips")
    with pytest.raises(InputError, match="of a kind not supported"):
        OpenClipTokenizer(model=name)

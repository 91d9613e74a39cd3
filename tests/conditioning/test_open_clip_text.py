import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from latentdiff.conditioning.open_clip_text import OpenClipText
from latentdiff.config.errors import InputError
from latentdiff.types import Batch

NAME = "latentdiff-test-tiny"
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3},
}
CAPTIONS = ["a red circle", "a blue box", ""]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folder with the model's configuration and its weights in both file formats, and the model itself."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    (folder / "config").mkdir()
    (folder / "config" / f"{NAME}.json").write_text(json.dumps(CONFIG))
    (folder / "config" / f"{NAME}-custom.json").write_text(json.dumps(CONFIG | {"custom_text": True}))
    open_clip.add_model_config(folder / "config")
    torch.manual_seed(0)
    clip = open_clip.create_model(NAME).eval()
    save_file(clip.state_dict(), folder / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in clip.state_dict().items()}}, folder / "w.pt")
    return folder, clip


def build(folder, weights="w.safetensors", model=NAME, **options):
    return OpenClipText(model=model, weights=str(folder / weights), model_config=str(folder / "config"), **options)


def batch(captions=CAPTIONS):
    return Batch(keys=[str(i) for i in range(len(captions))], caption=captions)


def hidden_states(clip, captions):
    """Each block's output, by hooks in open_clip's own encode_text."""
    import open_clip

    states = []
    hooks = [b.register_forward_hook(lambda *a: states.append(a[2])) for b in clip.transformer.resblocks]
    with torch.no_grad():
        clip.encode_text(open_clip.get_tokenizer(NAME)(captions))
    for hook in hooks:
        hook.remove()
    return states


@pytest.mark.parametrize("weights", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_states_are_those_of_the_block_counted_from_the_end(tiny, weights, block):
    folder, clip = tiny
    cond = build(folder, weights, block=block)(batch())
    with torch.no_grad():
        expected = clip.ln_final(hidden_states(clip, CAPTIONS)[-block])
    assert cond.tokens.shape == (3, 12, 16)
    assert cond.mask is None
    torch.testing.assert_close(cond.tokens, expected)


def test_last_block_ends_in_open_clips_text_feature(tiny):
    """The feature that CLIP was trained on is the projected state of the end token."""
    folder, clip = tiny
    tokens = build(folder, block=1)(batch()).tokens
    with torch.no_grad():
        ids = build(folder).tokenize(CAPTIONS)
        feature = tokens[torch.arange(3), ids.argmax(1)] @ clip.text_projection
        torch.testing.assert_close(feature, clip.encode_text(ids))


def test_frozen_and_in_no_checkpoint(tiny):
    conditioner = build(tiny[0])
    parent = nn.ModuleDict({"conditioner": conditioner}).train()
    assert not parent.state_dict()
    assert not any(p.requires_grad for p in parent.parameters())
    assert not any(m.training for m in conditioner.clip.modules())
    assert not conditioner(batch()).tokens.requires_grad
    assert conditioner.clip.visual is None


@pytest.mark.parametrize("weights", ["nowhere.safetensors", ""])
def test_missing_weights_are_an_input_error(tiny, weights):
    with pytest.raises(InputError, match=r"conditioner\.weights: (could not load '.*nowhere.*path of a file|name a)"):
        OpenClipText(model=NAME, weights=weights, model_config=str(tiny[0] / "config"))


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pt"])
def test_damaged_weights_are_an_input_error(tiny, tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="could not load"):
        OpenClipText(model=NAME, weights=str(tmp_path / name), model_config=str(tiny[0] / "config"))


def test_weights_of_another_model_are_an_input_error(tiny, tmp_path):
    other = {k: v for k, v in tiny[1].state_dict().items() if "ln_final" not in k}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"(?s)could not load.*ln_final"):
        OpenClipText(model=NAME, weights=str(tmp_path / "other.safetensors"), model_config=str(tiny[0] / "config"))


def test_unknown_model_block_and_kind_are_input_errors(tiny):
    with pytest.raises(InputError, match="no model 'ViT-none'"):
        build(tiny[0], model="ViT-none")
    with pytest.raises(InputError, match=r"blocks 1 \(last\) to 3; got 4"):
        build(tiny[0], block=4)
    with pytest.raises(InputError, match="is a CustomTextCLIP; only plain CLIP"):
        build(tiny[0], model=f"{NAME}-custom")


def test_weights_trained_with_another_activation_are_an_input_error(tiny, monkeypatch):
    """open_clip only warns, and computes something else than what the weights were trained for."""
    folder, _ = tiny
    monkeypatch.setattr("open_clip.factory.get_pretrained_cfg", lambda model, tag: {"quick_gelu": True})
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *a, **k: str(folder / "w.safetensors"))
    with pytest.raises(InputError, match=f"another activation .* use {NAME} or {NAME}-quickgelu"):
        build(folder)

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


def manual_loop(clip, captions, block):
    """Embeddings, positions, blocks one by one up to the one asked for, and the final norm."""
    import open_clip

    ids = open_clip.get_tokenizer(NAME)(captions)
    with torch.no_grad():
        x = clip.token_embedding(ids) + clip.positional_embedding
        for resblock in clip.transformer.resblocks[: 4 - block]:
            x = resblock(x, attn_mask=clip.attn_mask)
        return clip.ln_final(x)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_states_are_those_of_the_manual_loop(tiny, block):
    folder, clip = tiny
    cond = build(folder, block=block)(batch())
    torch.testing.assert_close(cond.tokens, manual_loop(clip, CAPTIONS, block), atol=1e-6, rtol=0)


@pytest.mark.parametrize("weights", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_states_are_those_of_the_block_counted_from_the_end(tiny, weights, block):
    folder, clip = tiny
    cond = build(folder, weights, block=block)(batch())
    with torch.no_grad():
        expected = clip.ln_final(hidden_states(clip, CAPTIONS)[-block])
    assert cond.tokens.shape == (3, 12, 16)
    assert cond.mask is None
    assert cond.vector is None
    torch.testing.assert_close(cond.tokens, expected)


def test_last_block_ends_in_open_clips_text_feature(tiny):
    """The feature that CLIP was trained on is the projected state of the end token."""
    folder, clip = tiny
    tokens = build(folder, block=1)(batch()).tokens
    with torch.no_grad():
        ids = build(folder).tokenizer(CAPTIONS)
        feature = tokens[torch.arange(3), ids.argmax(1)] @ clip.text_projection
        torch.testing.assert_close(feature, clip.encode_text(ids))


@pytest.mark.parametrize("model", [NAME, f"{NAME}-custom"])
def test_pooled_vector_is_open_clips_text_feature(tiny, model):
    """For the block that the tokens come from it does not matter, nor for the kind of model."""
    folder, clip = tiny
    conditioner = build(folder, model=model, block=2, pooled=True)
    ids = conditioner.tokenizer(CAPTIONS)
    with torch.no_grad():
        expected = clip.encode_text(ids)
        cond = conditioner(batch())
        assert torch.equal(cond.vector, conditioner.clip.encode_text(ids))
    torch.testing.assert_close(cond.vector, expected)  # not frozen, attention takes another kernel
    assert torch.equal(cond.tokens, build(folder, block=2)(batch()).tokens)
    assert (cond.vector.norm(dim=1) - 1).abs().min() > 0.1  # not normalised
    null = conditioner.null(batch())
    torch.testing.assert_close(null.vector, expected[2:].expand(3, -1))
    assert build(folder, block=2).null(batch()).vector is None


def test_long_captions_are_cut_as_open_clip_does_and_counted(tiny):
    """11 of 12 tokens are start and words, the last is the end."""
    import open_clip

    folder, clip = tiny
    conditioner = build(folder, block=1)
    long = "a red circle, left of a blue box on a white star"
    cond = conditioner(batch([long, "a red circle"]))
    assert torch.equal(conditioner.tokenizer([long]), open_clip.get_tokenizer(NAME)([long]))
    torch.testing.assert_close(cond.tokens, manual_loop(clip, [long, "a red circle"], 1), atol=1e-6, rtol=0)
    assert conditioner.truncated == 2
    assert conditioner.cut_captions([long, "a red circle"]) == [(long, 15)]


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


@pytest.mark.parametrize(
    ("name", "kind", "more"),
    [
        (
            "coca",
            "CoCa with a TextTransformer",
            {"custom_text": True, "multimodal_cfg": {"width": 16, "heads": 2, "layers": 1}},
        ),
        ("hub", "CustomTextCLIP with a HFTextEncoder", {"custom_text": True}),
    ],
)
def test_text_halves_that_are_not_open_clips_own_are_input_errors(tiny, bert, name, kind, more):
    import open_clip

    text = CONFIG["text_cfg"] if name == "coca" else {"hf_model_name": str(bert), "hf_tokenizer_name": str(bert)}
    about = CONFIG | more | {"text_cfg": text}
    (tiny[0] / "config" / f"{NAME}-{name}.json").write_text(json.dumps(about))
    open_clip.add_model_config(tiny[0] / "config")
    save_file(open_clip.create_model(f"{NAME}-{name}").state_dict(), tiny[0] / f"{name}.safetensors")
    with pytest.raises(InputError, match=f"is a {kind}; expected open_clip's own"):
        build(tiny[0], f"{name}.safetensors", model=f"{NAME}-{name}")


def test_a_tag_without_a_network_is_an_input_error_at_once(monkeypatch):
    def model_info(self, name, timeout):
        raise ConnectionError(f"no route to {name}")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("open_clip.create_model", None)  # nothing is downloaded
    with pytest.raises(
        InputError, match=r"(?s)no route to timm/vit_large_patch14_clip_224\.openai.*the path of a file"
    ):
        OpenClipText(model="ViT-L-14-quickgelu", weights="openai")


def test_weights_trained_with_another_activation_are_an_input_error(tiny, monkeypatch):
    """open_clip only warns, and computes something else than what the weights were trained for."""
    folder, _ = tiny
    monkeypatch.setattr("open_clip.factory.get_pretrained_cfg", lambda model, tag: {"quick_gelu": True})
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *a, **k: str(folder / "w.safetensors"))
    with pytest.raises(InputError, match=f"another activation .* use {NAME} or {NAME}-quickgelu"):
        build(folder)

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from latentdiff.conditioning.hf_text import HfText
from latentdiff.config.errors import InputError
from latentdiff.models import hub
from latentdiff.types import Batch

CAPTIONS = ["a red circle", "two blue boxes on white", ""]
FOLDERS = pytest.mark.parametrize("folder", ["bert", "t5"], indirect=True)


@pytest.fixture
def folder(request):
    return request.getfixturevalue(request.param)


def batch(captions=CAPTIONS):
    return Batch(keys=[str(i) for i in range(len(captions))], caption=captions)


def whole_model(folder):
    """The encoder inside the model that was saved, loaded by another class than the conditioner's."""
    import transformers

    if (folder / "vocab.txt").exists():
        return transformers.BertForPreTraining.from_pretrained(folder).eval().bert
    return transformers.T5Model.from_pretrained(folder).eval().encoder


@FOLDERS
def test_states_are_transformers_own(folder):
    import transformers

    cond = HfText(model=str(folder), max_length=16)(batch())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = tokenizer(CAPTIONS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = whole_model(folder)(**{key: found[key] for key in ("input_ids", "attention_mask")})
    assert torch.equal(cond.tokens, expected.last_hidden_state)
    assert torch.equal(cond.mask, found["attention_mask"].bool())
    assert cond.tokens.shape == (3, 16, 8)
    assert cond.vector is None


@FOLDERS
def test_earlier_blocks_are_taken_as_they_are(folder):
    conditioner = HfText(model=str(folder), max_length=16, block=2)
    model, seen = whole_model(folder), []
    blocks = model.encoder.layer if hasattr(model, "encoder") else model.block
    hook = blocks[-1].register_forward_pre_hook(lambda module, args, given: seen.append(args[0]), with_kwargs=True)
    ids, mask = conditioner.tokenizer(CAPTIONS)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask.long())
    hook.remove()
    assert torch.equal(conditioner(batch()).tokens, seen[0])


def test_text_half_of_a_clip_with_a_tokenizer_from_elsewhere(tmp_path, bert):
    import transformers

    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    text = sizes | {"vocab_size": 20, "max_position_embeddings": 12, "eos_token_id": 3}
    vision = sizes | {"image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    clip = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision)).eval()
    clip.save_pretrained(tmp_path)
    conditioner = HfText(model=str(tmp_path), tokenizer=str(bert), max_length=12)
    ids, mask = conditioner.tokenizer(CAPTIONS)
    with torch.no_grad():
        expected = clip.text_model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert torch.equal(conditioner(batch()).tokens, expected)
    with pytest.raises(InputError, match="reads at most 12 tokens, got 13"):
        HfText(model=str(tmp_path), tokenizer=str(bert), max_length=13)


@FOLDERS
def test_real_tokens_do_not_depend_on_padding_or_on_other_samples(folder):
    short, long = HfText(model=str(folder), max_length=14), HfText(model=str(folder), max_length=16)
    captions = ["a red star", "a blue box", ""]
    a, b = short(batch(captions)), long(batch(captions[::-1]))
    for i, caption in enumerate(captions):
        kept = a.mask[i]
        torch.testing.assert_close(b.tokens[2 - i][:14][kept], a.tokens[i][kept], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(long(batch([caption])).tokens[0, :14][kept], a.tokens[i][kept], atol=1e-6, rtol=1e-5)
        assert not b.mask[2 - i][14:].any()


@FOLDERS
def test_null_is_the_empty_caption(folder):
    conditioner = HfText(model=str(folder), max_length=16)
    null, empty = conditioner.null(batch(CAPTIONS)), conditioner(batch(["", "", ""]))
    torch.testing.assert_close(null.tokens, empty.tokens, atol=1e-6, rtol=1e-5)
    assert torch.equal(null.mask, empty.mask)
    assert null.mask.any(dim=1).all()


def test_precision_is_the_one_asked_for_whatever_training_uses(t5):
    exact, rough = HfText(model=str(t5), max_length=16), HfText(model=str(t5), max_length=16, bfloat16=True)
    assert {p.dtype for p in rough.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in exact.parameters()} == {torch.float32}
    plain = exact(batch()).tokens
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exact(batch()).tokens, plain)
    near = rough(batch()).tokens
    assert near.dtype == torch.float32
    assert 0 < (near - plain).abs().max() < 0.1 * plain.abs().max()


def test_frozen_and_in_no_checkpoint(bert):
    parent = nn.ModuleDict({"conditioner": HfText(model=str(bert), max_length=16)}).train()
    assert not parent.state_dict()
    assert not any(p.requires_grad for p in parent.parameters())
    assert not any(m.training for m in parent["conditioner"].encoder.modules())
    assert not parent["conditioner"](batch()).tokens.requires_grad


def test_cut_captions_are_counted(bert):
    conditioner = HfText(model=str(bert), max_length=5)
    conditioner(batch(["a red circle", "a red circle on white"]))
    assert conditioner.truncated == 1
    assert conditioner.cut_captions(["a red circle", "a red circle on white"]) == [("a red circle on white", 7)]


def test_no_network_is_an_input_error_at_once(monkeypatch, tmp_path):
    def model_info(self, name, timeout):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr(hub, "_load", None)  # nothing is downloaded
    with pytest.raises(InputError, match=r"hub cannot be reached .* 'nobody/nothing' is no folder"):
        HfText(model="nobody/nothing")


def test_pickled_and_incomplete_weights_are_input_errors(bert, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(bert, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"could not be loaded .*pickled ones are not read"):
        HfText(model=str(folder), max_length=8)
    kept = {key: value for key, value in weights.items() if "layer.1.output" not in key and "pooler" not in key}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 4 tensors of a BertModel, first encoder\.layer\.1\.output"):
        HfText(model=str(folder), max_length=8)


def test_what_does_not_fit_is_an_input_error(bert, t5, tmp_path):
    import transformers

    with pytest.raises(InputError, match=r"blocks 1 \(last\) to 3; got 4"):
        HfText(model=str(bert), max_length=8, block=4)
    with pytest.raises(InputError, match="reads at most 16 tokens, got 17"):
        HfText(model=str(bert), max_length=17)
    with pytest.raises(InputError, match=r"it has 28 tokens, but .* has embeddings of 14"):
        HfText(model=str(bert), tokenizer=str(t5), max_length=8)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="could not be loaded through transformers"):
        HfText(model=str(tmp_path), tokenizer=str(bert), max_length=8)

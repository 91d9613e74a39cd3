"""Files in LDM's layout: made here under the published names, which are also those of our own modules."""

from __future__ import annotations

import pickle
import sys
from types import ModuleType

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from latentdiff.checkpoint.foreign import architecture, ldm, reading
from latentdiff.checkpoint.foreign.statistics import Statistics
from latentdiff.config.errors import InputError

UNIT = Statistics((0.0,) * 3, (1.0,) * 3)
JUNK = {
    "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2, 2),
    "cond_stage_model.logit_scale": torch.zeros(()),
    "betas": torch.zeros(4),
    "model_ema.decay": torch.zeros(()),
}


def same(model, path) -> bool:
    again = reading.read(path).autoencoder().state_dict()
    own = model.state_dict()
    return again.keys() == own.keys() and all(torch.equal(again[name], own[name]) for name in own)


@pytest.mark.parametrize("prefix", ["", ldm.PREFIX])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channel_multipliers": (2, 4, 2), "num_res_blocks": 2, "attention_factors": (4,), "in_channels": 1},
        {"mid_attention": False, "embed_dim": 5, "latent_channels": 6},
        {"quant_conv": False, "post_quant_conv": False, "latent_channels": 16},
        {"codebook": 20, "embed_dim": 2, "attention_factors": (1, 2)},
    ],
)
def test_ours_to_ldm_to_ours_is_the_same_to_the_bit(ours, tmp_path, prefix, changes):
    model = ours(**changes)
    statistics = Statistics(*(tuple(torch.rand(model.latent_channels).tolist()) for _ in range(2)))
    ldm.write(model, statistics, tmp_path / "ae.safetensors", prefix=prefix)
    assert same(model, tmp_path / "ae.safetensors")
    found = reading.read(tmp_path / "ae.safetensors")
    assert found.statistics == statistics
    assert found.architecture == architecture.of_module(model)
    assert found.architecture.latent == {"channels": model.latent_channels, "factor": model.factor}


def test_the_names_are_the_published_ones(ours, tmp_path):
    ldm.write(ours(codebook=20), UNIT, tmp_path / "vq.safetensors", prefix=ldm.PREFIX)
    names = set(load_file(tmp_path / "vq.safetensors"))
    published = (
        "quantize.embedding.weight",
        "encoder.down.0.downsample.conv.weight",
        "decoder.up.2.upsample.conv.bias",
    )
    assert {ldm.PREFIX + name for name in published} <= names
    assert all(name.startswith(ldm.PREFIX) for name in names)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_of_stable_diffusion(ours, tmp_path, suffix):
    model = ours(latent_channels=4)
    weights = {ldm.PREFIX + name: value for name, value in model.state_dict().items()} | JUNK
    write = save_file if suffix == ".safetensors" else lambda w, f: torch.save({"state_dict": w, "global_step": 3}, f)
    write(weights, tmp_path / f"sd{suffix}")
    assert same(model, tmp_path / f"sd{suffix}")
    found = reading.read(tmp_path / f"sd{suffix}")
    assert found.statistics is None
    with pytest.raises(InputError, match=r"does not say how its latents are scaled; give first_stage.scale=NUMBER"):
        found.chosen_statistics()
    assert found.chosen_statistics(scale=0.18215) == Statistics((0.0,) * 4, (1 / 0.18215,) * 4)


def test_the_scale_that_ldm_measured(ours, tmp_path):
    weights = {ldm.PREFIX + name: value for name, value in ours().state_dict().items()} | JUNK
    save_file(weights | {"scale_factor": torch.tensor(0.25)}, tmp_path / "churches.safetensors")
    assert reading.read(tmp_path / "churches.safetensors").statistics == Statistics((0.0,) * 3, (4.0,) * 3)
    save_file(weights | {"scale_factor": torch.tensor(float("nan"))}, tmp_path / "broken.safetensors")
    with pytest.raises(InputError, match="scale_factor should be one number above 0, it is nan"):
        reading.read(tmp_path / "broken.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_an_autoencoder_of_compvis_with_its_loss(ours, tmp_path, monkeypatch, zipped):
    """Lightning's old checkpoints name a class beside the weights; it is neither imported nor called."""
    module = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    model = ours()
    extra = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(2, 2)}
    content = {
        "state_dict": dict(model.state_dict()) | extra,
        "callbacks": {module.ModelCheckpoint: {"best_model_path": "somewhere", "best_model_score": None}},
        "hyper_parameters": {"embed_dim": 3},
    }
    with monkeypatch.context() as patched:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
            patched.setitem(sys.modules, name, module)
        torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    before = set(sys.modules)
    assert same(model, tmp_path / "model.ckpt")
    assert not {name for name in set(sys.modules) - before if name.startswith("pytorch_lightning")}


def test_half_precision_becomes_float32(ours, tmp_path):
    model = ours()
    torch.save({name: value.half() for name, value in model.state_dict().items()}, tmp_path / "half.pt")
    for name, value in reading.read(tmp_path / "half.pt").autoencoder().state_dict().items():
        assert torch.equal(value, model.state_dict()[name].half().float())


class Malicious:
    def __init__(self, target) -> None:
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(ours, tmp_path, zipped):
    target = tmp_path / "written"
    content = {"state_dict": ours().state_dict(), "callbacks": Malicious(target)}
    torch.save(content, tmp_path / "bad.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"more than tensors: .*open.*Loading it would run its code.*safetensors"):
        reading.read(tmp_path / "bad.ckpt")
    assert not target.exists()
    with (tmp_path / "bare.ckpt").open("wb") as file:
        pickle.dump(content["callbacks"], file)
    with pytest.raises(InputError, match=r"more than tensors|cannot be read"):
        reading.read(tmp_path / "bare.ckpt")
    assert not target.exists()


@pytest.mark.parametrize(
    ("gone", "new", "message"),
    [
        (["decoder.mid.block_1.norm1.bias"], [], r"1 missing \(decoder.mid.block_1.norm1.bias\)"),
        (["encoder.conv_in.weight"], [], r"1 missing \(encoder.conv_in.weight\); use a complete file"),
        ([], [f"extra.{i}" for i in range(6)], r"6 surplus \(extra.0, extra.1, extra.2, extra.3, \.\.\.\)"),
        (["quant_conv.bias"], ["quantize.proj.bias"], r"1 missing \(quant_conv.bias\); 1 surplus \(quantize.proj.bias"),
        (["encoder.down.1.downsample.conv.weight", "decoder.conv_out.bias"], [], r"2 missing \(decoder.*, encoder"),
    ],
)
def test_missing_and_surplus_tensors_are_listed(ours, tmp_path, gone, new, message):
    weights = {name: value for name, value in ours().state_dict().items() if name not in gone}
    save_file(weights | {name: torch.zeros(1) for name in new}, tmp_path / "ae.safetensors")
    with pytest.raises(InputError, match=message):
        reading.read(tmp_path / "ae.safetensors").autoencoder()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("encoder.conv_out.weight", (3, 64, 3, 3), "a KL autoencoder .* writes 6, this one writes 3"),
        ("decoder.conv_in.weight", (64, 4, 3, 3), "a KL autoencoder .* writes 8, this one writes 6"),
        ("decoder.conv_out.weight", (4, 32, 3, 3), "reads images of 3 channels and writes 4"),
        ("encoder.mid.attn_1.k.weight", (32, 64, 1, 1), r"size mismatch for encoder.mid.attn_1.k.weight.*\[32, 64"),
        ("encoder.down.1.block.0.conv1.weight", (40, 32, 3, 3), r"\[32, 40, 64\] of the levels are no multiples"),
        ("encoder.conv_in.weight", (32,), "encoder.conv_in.weight has shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(ours, tmp_path, name, shape, message):
    weights = dict(ours().state_dict()) | {name: torch.zeros(shape)}
    save_file(weights, tmp_path / "ae.safetensors")
    with pytest.raises(InputError, match=message):
        reading.read(tmp_path / "ae.safetensors").autoencoder()


def test_files_that_hold_no_autoencoder(ours, tmp_path):
    save_file(JUNK, tmp_path / "unet.safetensors")
    with pytest.raises(InputError, match=r"holds no autoencoder: expected .* 4 others \(betas, "):
        reading.read(tmp_path / "unet.safetensors")
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(InputError, match=r"a file of no known kind; expected a checkpoint directory, a \.safetensors"):
        reading.read(tmp_path / "notes.txt")
    for name, content in (("empty.ckpt", b""), ("text.ckpt", b"text"), ("text.safetensors", b"text")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"cannot be read|is damaged"):
            reading.read(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="expected a dict of tensors, got list"):
        reading.read(tmp_path / "list.pt")
    torch.save({"state_dict": ours().state_dict()}, tmp_path / "cut.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "cut.ckpt").read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"cannot be read|is damaged"):
        reading.read(tmp_path / "cut.ckpt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_changed_or_missing_bytes_is_one_clear_error(tmp_path, zipped):
    """Whatever unpickling ends in; what still unpickles is no whole autoencoder."""
    path = tmp_path / "damaged.ckpt"
    torch.save({"encoder.conv_in.weight": torch.zeros(3)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        for content in (bytes(changed), whole[:place]):
            path.write_bytes(content)
            with pytest.raises(InputError):
                reading.read(path)


def test_metadata_that_is_no_statistics(ours, tmp_path):
    model = ours()
    for text, message in (("3", "are no lists"), ("[1, 2]", "of 2 latent channels"), ('["a", 1, 1]', "unusable")):
        save_file(model.state_dict(), tmp_path / "a.safetensors", metadata={"latent_mean": text, "latent_std": text})
        with pytest.raises(InputError, match=message):
            reading.read(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"patch": 2}, "folds 2x2 pixels"), ({"norm_groups": 16}, "have 16 groups, LDM's have 32")],
)
def test_what_ldm_does_not_know_is_not_written(ours, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        ldm.write(ours(**changes), UNIT, tmp_path / "ae.safetensors")
    with pytest.raises(InputError, match="a name that ends so"):
        ldm.write(ours(), UNIT, tmp_path / "ae.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_notes_say_where_the_scale_is(ours, tmp_path):
    (note,) = ldm.write(ours(), Statistics((0.0,) * 3, (4.0,) * 3), tmp_path / "a.safetensors")
    assert note.endswith("scale_factor: 0.25")
    (note,) = ldm.write(ours(), Statistics((0.0,) * 3, (1.0, 2.0, 3.0)), tmp_path / "b.safetensors")
    assert "latent_std" in note
    with safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        assert file.metadata()["latent_std"] == "[1.0, 2.0, 3.0]"

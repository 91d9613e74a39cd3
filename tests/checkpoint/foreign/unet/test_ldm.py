"""Files in LDM's layout; diffusers' own reader of Stable Diffusion's single files is the oracle of the names."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentdiff.checkpoint.foreign.backbones import load_backbone_weights
from latentdiff.checkpoint.foreign.unet import diffusers, ldm, reading
from latentdiff.checkpoint.foreign.unet.architecture import of_module
from latentdiff.config.errors import InputError

OTHERS = {
    "first_stage_model.encoder.conv_in.weight": torch.zeros(2, 2),
    "cond_stage_model.logit_scale": torch.zeros(()),
    "betas": torch.zeros(4),
}
EMA = {"model_ema.decay": torch.zeros(()), "model_ema.num_updates": torch.zeros((), dtype=torch.int)}


def same(a, b) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("prefix", ["", ldm.PREFIX])
def test_ours_to_ldm_to_ours_is_the_same_to_the_bit(unet, style, tmp_path, prefix):
    if style == "16 groups":
        with pytest.raises(InputError, match=r"have 16 groups, LDM's have 32"):
            ldm.write(unet(style), tmp_path / "unet.safetensors")
        return
    model, again = unet(style), unet(style, seed=2)
    ldm.write(model, tmp_path / "unet.safetensors", prefix=prefix)
    assert reading.read(tmp_path / "unet.safetensors").architecture == of_module(model)
    load_backbone_weights(again, tmp_path / "unet.safetensors")
    assert same(model, again)
    assert all(name.startswith(prefix) for name in load_file(tmp_path / "unet.safetensors"))


@pytest.mark.parametrize(
    ("style", "changes"),
    [("SD 1", {}), ("SD 2", {}), ("SD 1", {"channel_multipliers": (1, 2, 4, 4), "attention_factors": (1, 2, 4)})],
)
def test_a_single_file_of_ours_loads_in_diffusers(unet, answers, tmp_path, style, changes):
    library = pytest.importorskip("diffusers")
    model = unet(style, **changes)
    ldm.write(model, tmp_path / "sd.safetensors", prefix=ldm.PREFIX)
    diffusers.write(model, tmp_path / "config/unet")
    (tmp_path / "config/unet" / diffusers.WEIGHTS[0]).unlink()
    peer = library.UNet2DConditionModel.from_single_file(
        str(tmp_path / "sd.safetensors"), config=str(tmp_path / "config"), subfolder="unet", local_files_only=True
    ).eval()
    ours, theirs = answers(model, peer)
    assert float((ours - theirs).abs().max()) <= 1e-5


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("averaged", [False, True])
def test_a_file_of_stable_diffusion(unet, tmp_path, suffix, averaged):
    """Beside the UNet it holds the other parts, and often the averages, which are what is meant."""
    model, average, again = unet(), unet(seed=3), unet(seed=2)
    weights = {ldm.PREFIX + name: value for name, value in model.state_dict().items()} | OTHERS
    if averaged:
        flat = {ldm.AVERAGED + name.replace(".", ""): value for name, value in average.state_dict().items()}
        weights |= flat | EMA
    write = save_file if suffix == ".safetensors" else lambda w, f: torch.save({"state_dict": w, "global_step": 3}, f)
    write(weights, tmp_path / f"sd{suffix}")
    load_backbone_weights(again, tmp_path / f"sd{suffix}")
    assert same(again, average if averaged else model)
    if averaged:
        del weights[ldm.AVERAGED + "out2bias"]
        write(weights, tmp_path / f"sd{suffix}")
        with pytest.raises(InputError, match=r"averaged UNet .* 1 missing \(model_ema.diffusion_modelout2bias\)"):
            load_backbone_weights(again, tmp_path / f"sd{suffix}")


def test_half_precision_becomes_the_backbone_s(unet, tmp_path):
    model, again = unet(), unet(seed=2)
    torch.save({ldm.PREFIX + name: value.half() for name, value in model.state_dict().items()}, tmp_path / "half.ckpt")
    load_backbone_weights(again, tmp_path / "half.ckpt")
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].half().float())


@pytest.mark.parametrize(
    ("gone", "new", "message"),
    [
        (["out.2.bias"], [], r"not those of the UNet that it describes: 1 missing \(out.2.bias\)"),
        (["input_blocks.0.0.bias", "time_embed.0.bias"], ["x", "y"], r"2 missing \(.*\); 2 surplus \(x, y\)"),
        ([], [f"extra.{i}" for i in range(6)], r"6 surplus \(extra.0, extra.1, extra.2, extra.3, \.\.\.\)"),
        (["out.2.weight"], [], r"not those of a UNet: 1 missing \(out.2.weight\)"),
        (["output_blocks.8.0.in_layers.2.weight"], [], "8 output blocks on 3 levels"),
    ],
)
def test_missing_and_surplus_tensors_are_listed(unet, tmp_path, gone, new, message):
    model = unet()
    weights = {name: value for name, value in model.state_dict().items() if name not in gone}
    weights |= {name: torch.zeros(1) for name in new}
    save_file({ldm.PREFIX + name: value for name, value in weights.items()} | OTHERS, tmp_path / "sd.safetensors")
    with pytest.raises(InputError, match=message):
        load_backbone_weights(model, tmp_path / "sd.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 64}, "channels 32 there, 64 here"),
        ({"num_res_blocks": 1, "context_dim": 32}, "num_res_blocks 2 there, 1 here; context_dim 24 there, 32 here"),
        ({"heads": 2}, r"heads \(4, 4, 4\) there, \(2, 2, 2\) here"),
        ({"use_linear": True}, "use_linear False there, True here"),
        ({"num_classes": 3}, "num_classes None there, 3 here"),
        ({"resblock_updown": True}, "resblock_updown False there, True here"),
        ({"patch": 2}, "only patch 1 can be exchanged with other programs"),
        ({"position_embedding": True}, "only position_embedding: false can be exchanged"),
    ],
)
def test_another_architecture_is_refused_and_nothing_is_loaded(unet, tmp_path, changes, message):
    ldm.write(unet(), tmp_path / "unet.safetensors")
    other, before = unet(**changes), unet(**changes)
    with pytest.raises(InputError, match=message):
        load_backbone_weights(other, tmp_path / "unet.safetensors")
    assert same(other, before)


def test_a_file_of_ldm_does_not_say_its_heads(unet, answers, tmp_path):
    model, other = unet(heads=4), unet(heads=2, seed=2)
    save_file(model.state_dict(), tmp_path / "unet.safetensors")
    assert reading.read(tmp_path / "unet.safetensors").architecture.heads is None
    load_backbone_weights(other, tmp_path / "unet.safetensors")
    assert same(model, other)
    assert not torch.allclose(answers(model)[0], answers(other)[0])
    for heads in ("[4, 4]", "4", "[4, 4, true]", "{"):
        save_file(model.state_dict(), tmp_path / "unet.safetensors", metadata={ldm.HEADS: heads})
        with pytest.raises(InputError, match="unet_heads in its metadata should be 3 numbers"):
            reading.read(tmp_path / "unet.safetensors")


def test_files_that_hold_no_unet(unet, tmp_path):
    model = unet()
    save_file(OTHERS, tmp_path / "vae.safetensors")
    with pytest.raises(InputError, match=r"holds no UNet: expected .* 3 others \(betas, "):
        load_backbone_weights(model, tmp_path / "vae.safetensors")
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(InputError, match="a file of no known kind"):
        load_backbone_weights(model, tmp_path / "notes.txt")
    diffusers.write(model, tmp_path / "unet")
    (tmp_path / "unet/config.json").unlink()
    with pytest.raises(InputError, match=r"describes its models in config\.json; put it beside"):
        load_backbone_weights(model, tmp_path / "unet" / diffusers.WEIGHTS[0])
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(InputError, match="has the _class_name 'AutoencoderKL'; expected"):
        load_backbone_weights(model, tmp_path / "vae")


def test_what_ldm_is_told(unet, tmp_path):
    with pytest.raises(InputError, match="a name that ends so"):
        ldm.write(unet(), tmp_path / "unet.ckpt")
    (note,) = ldm.write(unet("SD 2"), tmp_path / "a.safetensors")
    assert "num_head_channels: 16" in note
    assert "use_linear_in_transformer: True" in note
    (note,) = ldm.write(unet("ADM"), tmp_path / "b.safetensors")
    assert note.endswith("use_scale_shift_norm: True, resblock_updown: True, num_classes: 7")

"""Backbones from stage-two checkpoints of our own."""

from __future__ import annotations

import pytest
import torch
import yaml
from torch import nn

from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign.backbones import load_backbone_weights, own_backbone
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build

UNET = {
    "_target_": "latentdiff.models.backbones.unet.UNet",
    "in_channels": 4,
    "out_channels": 4,
    "channels": 16,
    "channel_multipliers": [1, 3],
    "num_res_blocks": 1,
    "attention_factors": [2],
    "context_dim": 6,
    "heads": 2,
    "patch": 2,
}


DIT = {
    "_target_": "latentdiff.models.backbones.dit.DiT",
    "in_channels": 4,
    "out_channels": 4,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "patch": 2,
    "context_dim": 6,
}


def moved(backbone: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in backbone.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return backbone


def save(path, node, *, kind="diffusion", config=None, without=(), extra=()):
    """A checkpoint whose averaged weights differ from the last ones; returns the backbone with the averaged ones."""
    last, average = moved(build(node), 1), moved(build(node), 2)
    ema = {f"ema.model.denoiser.backbone.{name}": value for name, value in average.state_dict().items()}
    ema = {name: value for name, value in ema.items() if not name.endswith(tuple(without))}
    store.save(
        path,
        kind=kind,
        model={f"model.denoiser.backbone.{name}": value for name, value in last.state_dict().items()},
        ema=ema | {"ema.model.conditioner.x": torch.ones(1)} | {name: torch.ones(1) for name in extra},
        config=yaml.safe_dump({"task": {"denoiser": {"backbone": node}}} if config is None else config),
        counters={"batches_seen": 1, "images_seen": 2},
    )
    return average


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def test_the_averaged_weights_of_a_run_fill_a_backbone(tmp_path):
    """Also one whose options no other program knows, and whose norms have several numbers of groups."""
    average = save(tmp_path / "run/checkpoints/last", UNET)
    backbone = moved(build(UNET), 3)
    load_backbone_weights(backbone, tmp_path / "run")
    assert same(backbone, average)
    assert all(p.requires_grad for p in backbone.parameters())
    built = own_backbone(tmp_path / "run/checkpoints/last")
    assert same(built, average)
    assert not built.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 4}, r"input_blocks\.3\.1\..*\.heads 2 there, 4 here; .* and 4 more; choose the backbone"),
        ({"patch": 1}, "patch 2 there, 1 here"),
        ({"position_embedding": True}, "position_embedding False there, True here"),
        ({"norm_groups": 8}, r"num_groups 16 there, 8 here"),
        ({"context_dim": 5}, r"attn2\.to_k\.weight has \(48, 6\) there, \(48, 5\) here"),
        ({"num_classes": 3}, r"those of the UNet that it describes: 1 missing \(label_emb.weight\)"),
    ],
)
def test_another_backbone_is_refused(tmp_path, changes, message):
    save(tmp_path / "a", UNET)
    backbone, untouched = (moved(build(UNET | changes), 3) for _ in range(2))
    with pytest.raises(InputError, match=message):
        load_backbone_weights(backbone, tmp_path / "a")
    assert same(backbone, untouched)
    with torch.device("meta"), pytest.raises(InputError, match=message):
        load_backbone_weights(build(UNET | changes), tmp_path / "a")


@pytest.mark.parametrize("option", ["rope", "rms_norm"])
def test_another_dit_of_equal_weights_is_refused(tmp_path, option):
    save(tmp_path / "a", DIT)
    with pytest.raises(InputError, match=f"{option} False there, True here"):
        load_backbone_weights(build(DIT | {option: True}), tmp_path / "a")


@pytest.mark.filterwarnings("error")
def test_a_backbone_on_the_meta_device_is_only_compared(tmp_path):
    save(tmp_path / "a", UNET)
    with torch.device("meta"):
        backbone = build(UNET)
    load_backbone_weights(backbone, tmp_path / "a")
    assert all(p.is_meta for p in backbone.parameters())


def test_options_that_change_neither_the_function_nor_the_weights_may_differ(tmp_path):
    average = save(tmp_path / "a", UNET)
    backbone = build(UNET | {"dropout": 0.1, "checkpoint": True})
    load_backbone_weights(backbone, tmp_path / "a")
    assert same(backbone, average)


def test_what_is_no_backbone_of_ours_is_refused(tmp_path):
    backbone = build(UNET)
    save(tmp_path / "ae", UNET, kind="autoencoder")
    save(tmp_path / "bare", UNET, config={})
    save(tmp_path / "cut", UNET, without=["out.2.bias"])
    save(tmp_path / "more", UNET, extra=["ema.model.denoiser.backbone.x"])
    save(tmp_path / "bent", UNET)
    with (tmp_path / "bent/ema.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"abc")
    messages = {
        "ae": "kind autoencoder",
        "bare": r"has no task\.denoiser\.backbone",
        "cut": r"1 missing \(out\.2\.bias\)",
        "more": r"1 surplus \(x\)",
        "bent": "is damaged",
        "nothing": "no checkpoint found",
    }
    for name, message in messages.items():
        with pytest.raises(InputError, match=message):
            load_backbone_weights(backbone, tmp_path / name)


def test_another_class_of_backbone_is_refused(tmp_path):
    save(tmp_path / "a", UNET)
    with pytest.raises(InputError, match="a UNet there, a Identity here"):
        load_backbone_weights(nn.Identity(), tmp_path / "a")
    torch.save({"x": torch.ones(1)}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="are read for a UNet alone, this backbone is a Identity"):
        load_backbone_weights(nn.Identity(), tmp_path / "x.ckpt")

"""Weights for a backbone: from a stage-two checkpoint of ours, or from another program's UNet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign.unet import reading as foreign
from latentdiff.checkpoint.foreign.unet.architecture import of_module
from latentdiff.checkpoint.foreign.weights import check_names
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build, load_config
from latentdiff.models.backbones.unet import UNet

AVERAGED = "ema.model.denoiser.backbone."
"""Before the names of the backbone's averaged weights in a stage-two checkpoint."""

SETTINGS = ("patch", "position_embedding", "heads", "num_groups", "eps", "resample", "rope", "rms_norm")
"""Attributes of modules that their weights do not show."""


def load_backbone_weights(backbone: nn.Module, path: str | Path) -> None:
    """Fills ``backbone`` with the weights at ``path``, strictly, keeping its dtype and device.

    ``path`` is a stage-two checkpoint or run directory of ours, whose averaged weights are taken; a .ckpt or
    .safetensors file in LDM's or Stable Diffusion's layout, averaged weights too where it has them; or a diffusers
    folder of a UNet or of a pipeline. LDM's files do not say the number of heads: there the backbone's is believed.

    A ``backbone`` on the meta device is compared with them and left as it is.

    Raises InputError where there are no such weights, where they are damaged, or where they are of another
    architecture than ``backbone``: what differs is named, and nothing is loaded.
    """
    if foreign.recognises(path):
        _load_foreign(backbone, path)
    else:
        _load_own(backbone, store.resolve(path, prefer=("last", "best")))


def own_backbone(path: str | Path) -> nn.Module:
    """The backbone of a stage-two checkpoint of ours, built from its configuration, with the averaged weights."""
    path = store.resolve(path, prefer=("last", "best"))
    store.read_manifest(path, expect_kind="diffusion")
    store.verify(path)
    backbone = build(_node(path))
    _fill(backbone, _averaged(path), path)
    return backbone.requires_grad_(False).eval()


def _load_foreign(backbone: nn.Module, path: str | Path) -> None:
    if not isinstance(backbone, UNet):
        raise InputError(
            f"'{path}' was written by another program; such weights are read for a UNet alone, this backbone is a "
            f"{type(backbone).__name__}. Choose a UNet, or a checkpoint of ours"
        )
    found, own = foreign.read(path), of_module(backbone)
    _refuse(found.architecture.differences(own), path)
    _fill(backbone, found.weights, found.path)


def _load_own(backbone: nn.Module, path: Path) -> None:
    store.read_manifest(path, expect_kind="diffusion")
    store.verify(path)
    with torch.device("meta"):
        theirs = build(_node(path))
    if type(theirs) is not type(backbone):
        _refuse([f"a {type(theirs).__name__} there, a {type(backbone).__name__} here"], path)
    there, here = _settings(theirs), _settings(backbone)
    shared = [name for name in there if name in here and there[name] != here[name]]
    _refuse([f"{name} {there[name]} there, {here[name]} here" for name in shared], path)
    _fill(backbone, _averaged(path), path)


def _node(path: Path) -> DictConfig:
    """Of the backbone in the checkpoint's own configuration."""
    node = OmegaConf.select(load_config(path / store.CONFIG), "task.denoiser.backbone")
    if node is None:
        raise InputError(f"the configuration in '{path}' has no task.denoiser.backbone; use another checkpoint")
    return node


def _settings(backbone: nn.Module) -> dict[str, object]:
    """What changes the function, but neither names nor shapes of the weights."""
    return {
        f"{name}.{setting}".lstrip("."): getattr(module, setting)
        for name, module in backbone.named_modules()
        for setting in SETTINGS
        if hasattr(module, setting)
    }


def _averaged(path: Path) -> dict[str, Tensor]:
    weights = store.load_weights(path, "ema")
    return {name.removeprefix(AVERAGED): value for name, value in weights.items() if name.startswith(AVERAGED)}


def _fill(backbone: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    own = backbone.state_dict()
    check_names(own, weights, path, f"the {type(backbone).__name__}")
    shapes = {name: (tuple(weights[name].shape), tuple(value.shape)) for name, value in own.items()}
    _refuse([f"{name} has {there} there, {here} here" for name, (there, here) in shapes.items() if there != here], path)
    if not any(value.is_meta for value in own.values()):
        backbone.load_state_dict(weights, strict=True)


def _refuse(differences: list[str], path: str | Path) -> None:
    if differences:
        more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise InputError(
            f"the backbone in '{path}' is another than this one: {'; '.join(differences[:4])}{more}; choose the "
            "backbone that the weights are of"
        )

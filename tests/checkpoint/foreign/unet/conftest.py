"""Small UNets with random weights: ours, and their inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from latentdiff.models.backbones.unet import UNet
from latentdiff.types import Conditioning

WIDTH = 32
PLAIN = {
    "in_channels": 4,
    "out_channels": 4,
    "channels": WIDTH,
    "channel_multipliers": (1, 2, 2),
    "num_res_blocks": 1,
    "attention_factors": (1, 2),
    "context_dim": 24,
    "heads": 4,
}
WITHOUT_CONTEXT = {"context_dim": None, "heads": None, "head_width": 16}
STYLES = {
    "SD 1": {"num_res_blocks": 2},
    "SD 2": {"heads": None, "head_width": 16, "use_linear": True},
    "LDM ImageNet": {"in_channels": 3, "out_channels": 3, "attention_factors": (2, 4), "heads": 1},
    "LDM ImageNet, head width": {"heads": None, "head_width": 8},
    "inpainting": {"in_channels": 9, "channel_multipliers": (1, 2)},
    "vector, depths": {
        "heads": None,
        "head_width": 16,
        "use_linear": True,
        "transformer_depth": (1, 2, 3),
        "vector_dim": 20,
        "attention_factors": (2, 4),
    },
    "classes": {"num_classes": 7, "use_scale_shift_norm": True},
    "no context": WITHOUT_CONTEXT | {"channel_multipliers": (1, 2, 3), "attention_factors": (4, 2)},
    "no context, one head": {"context_dim": None, "heads": 1, "attention_factors": (1, 4), "num_classes": 7},
    "no attention but the middle's": WITHOUT_CONTEXT | {"attention_factors": (), "in_channels": 6},
    "ADM": WITHOUT_CONTEXT
    | {"use_scale_shift_norm": True, "resblock_updown": True, "num_classes": 7, "attention_factors": (2,)},
    "16 groups": {"channels": 16, "norm_groups": 16},
}


def randomised(module: nn.Module, seed: int = 1) -> nn.Module:
    """With every parameter moved, those that start as zero or one too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return module.eval()


@pytest.fixture
def unet() -> Callable[..., UNet]:
    """``unet(style, **changes)``: one of ours in a style of ``STYLES``."""

    def make(style: str = "SD 1", *, seed: int = 1, **changes) -> UNet:
        torch.manual_seed(seed)
        return randomised(UNet(**(PLAIN | STYLES[style] | changes)), seed)

    return make


@pytest.fixture(params=STYLES)
def style(request) -> str:
    return request.param


@pytest.fixture
def answers(draw) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """``answers(ours, peer=None)``: what our UNet and diffusers' say to the same random input."""

    def ask(ours: UNet, peer: nn.Module | None = None, dtype: torch.dtype = torch.float32):
        x, t = draw(2, ours.in_channels, 16, 8).to(dtype), torch.tensor([3, 700])
        tokens = None if ours.context_dim is None else draw(2, 5, ours.context_dim).to(dtype)
        vector = None if ours.vector_dim is None else draw(2, ours.vector_dim, seed=1).to(dtype)
        label = None if ours.num_classes is None else torch.tensor([ours.num_classes - 1, 0])
        with torch.no_grad():
            own = ours(x, t, Conditioning(tokens=tokens, vector=vector, label=label))
            if peer is None:
                return own, None
            labels = vector if label is None else label
            theirs = peer(x, t, class_labels=labels) if tokens is None else peer(x, t, tokens, class_labels=labels)
        return own, theirs.sample

    return ask

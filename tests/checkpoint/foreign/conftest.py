"""Small autoencoders with random weights: diffusers' as peers, and ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from latentdiff.models.autoencoder.autoencoder import Autoencoder
from latentdiff.models.autoencoder.bottlenecks.kl import KL
from latentdiff.models.autoencoder.bottlenecks.vq import VQ


def randomised(module: nn.Module, seed: int = 1) -> nn.Module:
    """With every parameter moved, those that start as zero or one too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return module.eval()


@pytest.fixture
def peer() -> Callable[..., nn.Module]:
    """``peer(attention=(levels...), **config)``: an AutoencoderKL, or a VQModel where it has a codebook."""
    diffusers = pytest.importorskip("diffusers")

    def make(*, attention: tuple[int, ...] = (), **config) -> nn.Module:
        torch.manual_seed(0)
        down, up = (
            [("", "Attn")[i in attention] + kind for i in range(len(config["block_out_channels"]))]
            for kind in ("DownEncoderBlock2D", "UpDecoderBlock2D")
        )
        kind = diffusers.VQModel if "num_vq_embeddings" in config else diffusers.AutoencoderKL
        return randomised(kind(down_block_types=down, up_block_types=up[::-1], **config))

    return make


@pytest.fixture
def ours() -> Callable[..., Autoencoder]:
    """``ours(codebook=None, **changes)``: one of ours, f4 with 3 channels unless changed."""

    def make(*, codebook: int | None = None, **changes) -> Autoencoder:
        torch.manual_seed(0)
        sizes = {"channels": 32, "channel_multipliers": (1, 2, 2), "num_res_blocks": 1, "latent_channels": 3} | changes
        width = sizes.get("embed_dim", sizes["latent_channels"])
        bottleneck = KL() if codebook is None else VQ(entries=codebook, channels=width)
        return randomised(Autoencoder(bottleneck=bottleneck, **sizes))

    return make


@pytest.fixture
def draw() -> Callable[..., torch.Tensor]:
    """``draw(*shape)``: standard normal, always the same."""
    return lambda *shape, seed=0: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

from __future__ import annotations

import pytest
import torch
from torch import nn

from latentdiff.diffusion.grids import Uniform
from latentdiff.diffusion.guidance import Unguided
from latentdiff.diffusion.path import RectifiedFlow
from latentdiff.diffusion.samplers.ddim import DDIM
from latentdiff.generation.pipeline import LatentPipeline
from latentdiff.types import Batch, Conditioning

STD = 0.5
"""Of the data that ``gaussian`` knows."""


class Averaging:
    """A latent is the mean of a block of 2 x 2 pixels in [-1, 1]."""

    channels, factor = 3, 2

    def moments(self, image):
        mean = nn.functional.avg_pool2d(image, 2)
        return mean, torch.ones_like(mean)

    def draw(self, moments, noise):
        return moments[0] + moments[1] * noise

    def decode(self, z):
        return z.repeat_interleave(2, 2).repeat_interleave(2, 3)


class Nothing:
    """No condition."""

    drop, parts = 0.0, ()

    def __call__(self, batch, codec=None, draws=None):
        return Conditioning()

    null = __call__


class Gaussian(nn.Module):
    """A denoiser that knows E[x0 | x_t] for data N(0, STD^2) in every coordinate."""

    t_max = 1.0

    def __init__(self, path):
        super().__init__()
        self.path, self.weight = path, nn.Parameter(torch.zeros(()))  # the pipeline's device is its parameters'

    def denoise(self, x_t, t, cond):
        alpha, sigma = (c.view(-1, 1, 1, 1) for c in self.path.alpha_sigma(t))
        return alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * x_t


def gaussian(path=None, **changes) -> LatentPipeline:
    parts = {
        "denoiser": Gaussian(path or RectifiedFlow()).eval(),
        "conditioner": Nothing(),
        "codec": Averaging(),
        "sampler": DDIM(),
        "grid": Uniform(),
        "steps": 20,
        "guidance": Unguided(),
        "image_size": 16,
    }
    return LatentPipeline(**(parts | changes))


@pytest.fixture(name="gaussian")
def gaussian_() -> object:
    """Settings -> a pipeline that knows its data exactly, at 16 pixels."""
    return gaussian


@pytest.fixture
def pictured() -> Batch:
    """Four smooth images with a hole in the middle each, which touches some of its latents with a single pixel."""
    coarse = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 255
    image = nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear").to(torch.uint8)
    mask = torch.zeros(4, 1, 16, 16, dtype=torch.uint8)
    mask[:, :, 4:9, 5:12] = 1
    return Batch(keys=list("abcd"), image=image, mask=mask)

"""The variational bound of a denoiser over a data set, in bits per number of the whitened latent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.bound import Bound, variational_bound
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.noise import seeded_noise
from latentdiff.evaluation.engine import image_seed
from latentdiff.types import Batch, Codec, Column, Conditioner, Rows

LEVELS = 128
"""Noise levels per sample unless told otherwise. A whole table of 1000 would cost 1000 calls of the network."""

MEANING = (
    "bits per number of the whitened latent: of -log p(z | condition) for draws z of stage one's posterior, a density "
    "per unit of z. The last step, from the least noisy z to z itself, is a Gaussian around the denoiser's estimate "
    "with that level's sigma / alpha as its standard deviation. May be negative; to be compared between models on the "
    "same first stage alone; says nothing of the decoder and is not bits per pixel"
)
"""What the numbers are, for whoever shows them."""
TERMS = ("prior", "diffusion", "reconstruction")


class VariationalBound:
    """The metric of a model rather than of its images: an upper bound on what the samples' latents cost, without
    guidance, in float32.

    Latent, noise and levels of sample i depend on ``seed`` and i alone, so that models are compared on the same
    draws, however the samples are batched.

    Args:
        denoiser: in eval mode, usually the averaged weights.
        levels: noise levels per sample, each one call of the network; unbiased for any number. A table with fewer
            entries takes them all. None: every entry of a table.

    Raises:
        InputError: what ``variational_bound`` refuses, when it is measured.
        ValueError: the denoiser is in training mode.
    """

    def __init__(
        self,
        *,
        denoiser: Denoiser,
        conditioner: Conditioner,
        codec: Codec,
        seed: int,
        device: torch.device | str,
        levels: int | None = LEVELS,
    ):
        if denoiser.training:
            raise ValueError("the denoiser is in training mode, its dropout would be active; call .eval() on it")
        self.denoiser, self.conditioner, self.codec = denoiser, conditioner, codec
        self.seed, self.device, self.levels = seed, torch.device(device), _levels(denoiser, levels)

    def check(self, batch: Batch) -> None:
        """Raises InputError where the samples lack what is read of them."""
        if batch.image is None:
            raise InputError("the bound is one on images' latents, the samples have no images; give data with images")

    @torch.no_grad()
    def measure(self, images: Tensor, batch: Batch) -> dict[str, Column]:
        """The terms of ``batch.image``, float64 (B,), in the unit of ``MEANING``; the images are not looked at."""
        self.check(batch)
        seeds = [image_seed(self.seed, batch.start + i) for i in range(len(batch))]
        bound = self._of_batch(batch.to(self.device), seeds)
        return {name: getattr(bound, name).double() / (bound.elements * math.log(2)) for name in TERMS}

    def result(self, rows: Rows) -> dict[str, float]:
        """Means over the samples: ``bits_per_dim`` and its three terms ``prior``, ``diffusion`` and
        ``reconstruction``, which add up to it; ``spread``, the standard deviation of ``bits_per_dim`` between
        samples, of data and draws together; ``standard_error`` of the mean (both 0 for one sample)."""
        terms = {name: rows.column(name) for name in TERMS}
        total = sum(terms.values())
        spread = total.std().item() if len(rows) > 1 else 0.0
        return {
            "bits_per_dim": total.mean().item(),
            **{name: values.mean().item() for name, values in terms.items()},
            "spread": spread,
            "standard_error": spread / math.sqrt(len(rows)),
        }

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {"meaning": MEANING, "levels": self.levels, "seed": self.seed}

    def _of_batch(self, batch: Batch, seeds: list[int]) -> Bound:
        with torch.autocast(self.device.type, enabled=False):
            mean, std = self.codec.moments(batch.image.float() / 127.5 - 1.0)
            shape = tuple(mean.shape[1:])
            x0 = self.codec.draw((mean, std), seeded_noise(seeds, "bound posterior", shape).to(self.device))
            cond = self.conditioner(batch, self.codec)

            def noise_at(i: int) -> Tensor:
                return seeded_noise(seeds, f"bound {i}", shape).to(self.device)

            return variational_bound(self.denoiser, x0, cond, noise_at=noise_at, steps=self.levels)


def _levels(denoiser: Denoiser, wanted: int | None) -> int | None:
    """As many of a table's entries as there are; the first one belongs to the reconstruction."""
    table = denoiser.path.steps
    if wanted is None or table is None:
        return wanted
    return min(wanted, int(denoiser.t_max * table + 1e-6) - 1)

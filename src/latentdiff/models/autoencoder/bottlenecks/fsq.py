"""Finite scalar quantisation: every latent channel is rounded to a few fixed levels; nothing is learned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.models.autoencoder.bottlenecks.base import Bottleneck, DiagonalGaussian, Latent
from latentdiff.models.autoencoder.bottlenecks.codes import (
    check_indices,
    check_latent,
    counts_of,
    straight_through,
    sum_over_ranks,
    use_of_codes,
)
from latentdiff.nn.precision import at_least_float32

MARGIN = 1e-3
"""By how much the bounded latents may pass the outermost levels, so that these are reached at a finite input."""


class FSQ(Bottleneck):
    """Channel i takes ``levels[i]`` equidistant values in about [-1, 1] (arXiv:2309.15505, section 3 and appendix A.1).

    The latents of stage two are bounded already, not yet rounded. The penalty is zero.

    Args:
        levels: number of values per channel, at least 2 each; their product is the number of codes.

    Raises InputError where a channel has fewer than 2 levels.
    """

    reduction = "mean"
    channels: int
    levels: Tensor
    strides: Tensor

    def __init__(self, *, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise InputError(f"FSQ bottleneck: levels must hold at least 2 per channel, got {list(levels)}")
        self.channels, self.entries = len(levels), math.prod(levels)
        self.register_buffer("levels", torch.tensor(levels).view(-1, 1, 1), persistent=False)
        strides = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("strides", torch.tensor(strides).view(-1, 1, 1), persistent=False)
        self._counts: Tensor | None = None

    def posterior(self, h: Tensor) -> DiagonalGaussian:
        """h (B, C, h, w), unbounded -> the bounded latents before rounding, as a point mass; 0 stays 0."""
        h = at_least_float32(h)
        half = ((self.levels - 1) * (0.5 + 0.5 * MARGIN)).to(h.dtype)
        offset = 0.5 * ((self.levels + 1) % 2).to(h.dtype)  # an even number of levels lies unevenly around 0
        bounded = torch.tanh(h + torch.atanh(offset / half)) * half - offset
        return DiagonalGaussian(bounded / (self.levels // 2))

    def forward(self, h: Tensor, noise: Tensor) -> Latent:
        """Rounded latents; the logs are of these images alone."""
        posterior = self.posterior(h)
        indices = self._indices(posterior.mean)
        counts = counts_of(indices, self.entries, posterior.mean.dtype)
        if self.training:
            self._counts = counts if self._counts is None else self._counts + counts
        penalty = posterior.mean.new_zeros(len(h))
        return Latent(self.for_decoder(posterior.mean), posterior, penalty, use_of_codes(counts))

    def for_decoder(self, z: Tensor) -> Tensor:
        """The nearest level of each element, with a straight-through gradient."""
        z = at_least_float32(z)
        return straight_through(z, self._values(self._digits(z), z.dtype))

    def indices(self, z: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> number of the nearest code, int64 (B, h, w); the first channel counts fastest."""
        check_latent(z, self.channels)
        return self._indices(at_least_float32(z))

    def lookup(self, indices: Tensor) -> Tensor:
        """Code numbers (B, h, w) -> float32 latents (B, C, h, w). Raises InputError for a number out of range."""
        check_indices(indices, self.entries)
        return self._values(indices[:, None] // self.strides % self.levels, torch.float32)

    @torch.no_grad()
    def after_batch(self, draws: Draws | None = None) -> dict[str, Tensor]:
        """Perplexity and usage over the global batch. Raises ValueError without a forward pass in training mode."""
        if self._counts is None:
            raise ValueError("after_batch needs a forward pass in training mode before it")
        counts, self._counts = sum_over_ranks(self._counts), None
        return use_of_codes(counts)

    def forget_batch(self) -> None:
        self._counts = None

    def _indices(self, z: Tensor) -> Tensor:
        return (self._digits(z) * self.strides).sum(1)

    def _digits(self, z: Tensor) -> Tensor:
        """The nearest level, int64 (B, C, h, w) in [0, levels)."""
        half = self.levels // 2
        return torch.minimum((z.detach() * half).round().long() + half, self.levels - 1).clamp_min(0)

    def _values(self, digits: Tensor, dtype: torch.dtype) -> Tensor:
        half = self.levels // 2
        return (digits - half).to(dtype) / half

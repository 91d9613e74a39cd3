"""The variational bound of a denoiser on the negative log-likelihood of latents, sample by sample, in nats.

The generative model behind it: x at the noisiest time is N(0, (alpha^2 + sigma^2) I), what ``LatentPipeline`` starts
from; steps down to the least noisy time have the mean and variance of q(x_s | x_t, x0) with x0_hat for x0; from there
x0 is N(x0_hat, (sigma / alpha)^2 I), a density, as latents are continuous.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.coefficients import at_least_float32
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.types import Conditioning, Path

LOG_SNR_RANGE = (-12.0, 12.0)
"""Noisiest and least noisy level of a continuous path; outside, more levels change the bound by less than its noise."""

CONTINUOUS_STEPS = 128


@dataclass(frozen=True)
class Bound:
    """Terms of the bound, (B,) float64 in nats, of samples of ``elements`` numbers."""

    prior: Tensor
    """KL of the noisiest x from the noise that sampling starts from."""
    diffusion: Tensor
    """KLs of all steps between the two ends."""
    reconstruction: Tensor
    """-log p(x0 | least noisy x); negative where that density is above 1."""
    elements: int

    @property
    def total(self) -> Tensor:
        return self.prior + self.diffusion + self.reconstruction

    @property
    def bits_per_dim(self) -> Tensor:
        """Bits per number of the latent. Of a density in latent space: may be negative, says nothing of pixels."""
        return self.total / (self.elements * math.log(2))


@torch.no_grad()
def variational_bound(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Conditioning,
    *,
    noise_at: Callable[[int], Tensor],
    steps: int | None = None,
) -> Bound:
    """The bound on -log p(x0 | cond) of each sample of x0 (B, C, h, w), without guidance.

    On a table: DDPM's bound (arXiv:2006.11239 eq. 5) over its entries up to the denoiser's ``t_max``, each KL written
    ``1/2 (SNR_{i-1} - SNR_i) |x0 - x0_hat(x_i)|^2`` (VDM, arXiv:2107.00630 section 4). On a continuous path: its limit
    ``1/2 integral of SNR |x0 - x0_hat|^2 d log-SNR`` over ``LOG_SNR_RANGE``, cut off at ``t_max``.

    Args:
        denoiser: in eval mode.
        x0: whitened latents.
        cond: of the same samples.
        noise_at: i -> standard normal (B, C, h, w). 0 is the reconstruction's, 1 to ``steps`` those of the levels from
            the least to the most noisy, and the first number of each sample of ``steps + 1`` places its levels.
        steps: levels to average over; the estimate is unbiased for any. None: every entry of a table (exact but for the
            noise), 128 on a continuous path. A level costs one call of the network, the reconstruction another.

    Raises:
        InputError: ``steps`` below 1, or above the number of entries after the first.
    """
    path, x0 = denoiser.path, at_least_float32(x0)
    levels = _continuous_levels(denoiser) if path.steps is None else _table_levels(denoiser, path.steps)
    steps = _checked_steps(path, levels, steps)
    place = torch.special.ndtr(noise_at(steps + 1).to(x0).flatten(1)[:, 0].double())
    diffusion = torch.zeros_like(place)
    for i in range(steps):
        t, weight = levels.at((i + place) / steps)
        diffusion += weight / steps * _square_error(denoiser, x0, noise_at(i + 1), t, cond)
    return Bound(
        prior=_prior(path, x0, levels.noisiest),
        diffusion=diffusion,
        reconstruction=_reconstruction(denoiser, x0, noise_at(0), levels.least_noisy, cond),
        elements=x0[0].numel(),
    )


@dataclass(frozen=True)
class _Levels:
    """The times of the two ends, and u (B,) in [0, 1) -> time and weight, whose mean over u is the sum of the terms."""

    least_noisy: float
    noisiest: float
    at: Callable[[Tensor], tuple[Tensor, Tensor]]
    count: int | None = None


def _table_levels(denoiser: Denoiser, table: int) -> _Levels:
    """``table``: entries of the path's."""
    path, entries = denoiser.path, int(denoiser.t_max * table + 1e-6)
    count = entries - 1

    def at(u: Tensor) -> tuple[Tensor, Tensor]:
        index = 1 + (u * count).floor().clamp(max=count - 1)
        t, previous = (index + 1) / table, index / table
        return t, 0.5 * count * (path.log_snr(previous).exp() - path.log_snr(t).exp())

    return _Levels(least_noisy=1 / table, noisiest=entries / table, at=at, count=count)


def _continuous_levels(denoiser: Denoiser) -> _Levels:
    path, (low, high) = denoiser.path, LOG_SNR_RANGE
    low = max(low, path.log_snr(_scalar(denoiser.t_max)).item())

    def at(u: Tensor) -> tuple[Tensor, Tensor]:
        log_snr = high + u * (low - high)
        return path.time_at(log_snr), 0.5 * (high - low) * log_snr.exp()

    least_noisy, noisiest = (path.time_at(_scalar(level)).item() for level in (high, low))
    return _Levels(least_noisy=least_noisy, noisiest=noisiest, at=at)


def _checked_steps(path: Path, levels: _Levels, steps: int | None) -> int:
    if steps is None:
        return levels.count or CONTINUOUS_STEPS
    if steps < 1 or (levels.count is not None and steps > levels.count):
        most = f"1 to {levels.count}, the entries after the first of" if levels.count else "at least 1 on"
        raise InputError(f"variational bound: expected steps {most} {type(path).__name__}, got {steps}")
    return steps


def _prior(path: Path, x0: Tensor, t: float) -> Tensor:
    """KL(N(alpha x0, sigma^2) | N(0, alpha^2 + sigma^2)) summed over the elements; 0 where alpha is."""
    alpha, sigma = path.alpha_sigma(_scalar(t).to(x0.device))
    scale = alpha**2 + sigma**2
    constant = 0.5 * (sigma**2 / scale - 1 - torch.log(sigma**2 / scale))
    return 0.5 * alpha**2 / scale * (x0.double() ** 2).flatten(1).sum(1) + constant * x0[0].numel()


def _reconstruction(denoiser: Denoiser, x0: Tensor, noise: Tensor, t: float, cond: Conditioning) -> Tensor:
    alpha, sigma = denoiser.path.alpha_sigma(_scalar(t).to(x0.device))
    variance = (sigma / alpha) ** 2
    times = torch.full((len(x0),), t, dtype=torch.float64, device=x0.device)
    error = _square_error(denoiser, x0, noise, times, cond)
    return 0.5 * error / variance + 0.5 * x0[0].numel() * torch.log(2 * math.pi * variance)


def _square_error(denoiser: Denoiser, x0: Tensor, noise: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """|x0 - x0_hat(x_t)|^2 summed over the elements, (B,) float64."""
    t = t.to(x0.dtype)
    x0_hat = denoiser.denoise(denoiser.path.mix(x0, noise.to(x0), t), t, cond)
    return ((x0 - x0_hat).double() ** 2).flatten(1).sum(1)


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cpu")

"""Radially averaged power spectrum of latents: how much of them is fine structure."""

from __future__ import annotations

import torch
from torch import Tensor

BANDS = {"low": (0.0, 1 / 8), "middle": (1 / 8, 1 / 4), "high": (1 / 4, 1.0)}
"""Cycles per latent position, lower bound excluded; 1/2 is the finest along an axis, the corners reach further."""


def radial_power(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) -> float64 (B, C, bands + rings): the power of each image and channel, its mean left out,
    summed over the coefficients of each of ``BANDS`` and of each ring of frequencies k / min(h, w), k = 1 upwards."""
    power = torch.fft.fft2(latents.double(), norm="ortho").abs().square().flatten(2)
    return power @ _members(*latents.shape[-2:]).to(power.device).double().T


def spectrum(power: Tensor, size: tuple[int, int]) -> dict[str, object]:
    """What ``radial_power`` gave, summed over images, (C, bands + rings), as a multiple of white noise's.

    Each channel is scaled to the same power, so that white noise of any strength has 1 at every frequency. Bands as
    {name: multiple}; the curve as lists ``frequency``, in cycles per position, and ``power``; ``slope``, the exponent
    p of the least-squares line through log power ~ p log frequency: 0 for white noise, about -2 for photographs
    (Field 1987). Bands without a coefficient are absent, the slope where there are fewer than two rings; empty for
    constant latents.

    Args:
        size: (h, w) of the latents.
    """
    height, width = size
    totals = power[:, : len(BANDS)].sum(1, keepdim=True)  # the bands are everything but the mean
    alive = totals.flatten() > 1e-20 * height * width
    if not bool(alive.any()):
        return {}
    counts = _members(height, width).sum(1)
    relative = (power / totals)[alive].mean(0) * (height * width - 1) / counts
    found: dict[str, object] = {name: float(value) for name, value, count in zip(BANDS, relative, counts) if int(count)}
    curve = relative[len(BANDS) :]
    rings = torch.arange(1, len(curve) + 1, dtype=torch.float64)
    if len(rings) > 1:
        found["slope"] = _slope(rings.log(), curve.clamp_min(1e-30).log())
    return {**found, "frequency": (rings / min(height, width)).tolist(), "power": curve.tolist()}


def _members(height: int, width: int) -> Tensor:
    """bool (bands + rings, height * width): which Fourier coefficients belong to which."""
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (height, width))
    radius = torch.sqrt(rows[:, None].square() + columns[None].square()).flatten()
    ring, side = (radius * min(height, width)).round(), min(height, width)
    bands = [(radius > low) & (radius <= high) for low, high in BANDS.values()]
    return torch.stack([*bands, *(ring == k for k in range(1, side // 2 + 1))])


def _slope(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / x.square().sum())

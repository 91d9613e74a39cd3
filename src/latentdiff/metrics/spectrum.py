"""Radially averaged power spectrum of latents: how much of them is fine structure."""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff.metrics.gather import summed

BANDS = {"low": (0.0, 1 / 8), "middle": (1 / 8, 1 / 4), "high": (1 / 4, 1.0)}
"""Cycles per latent position, lower bound excluded; 1/2 is the finest along an axis, the corners reach further."""


class RadialSpectrum:
    """Power of latents (B, C, h, w) of one size over spatial frequency, as a multiple of white noise's.

    The mean of each image and channel is left out and each channel is scaled to the same power, so that white noise
    of any strength has 1 at every frequency. ``slope`` is the exponent p of the least-squares line through
    log power ~ p log frequency: 0 for white noise, about -2 for photographs (Field 1987).
    """

    def __init__(self) -> None:
        self._power: Tensor | None = None

    @torch.no_grad()
    def update(self, latents: Tensor) -> None:
        power = torch.fft.fft2(latents.double(), norm="ortho").abs().square().sum(0)
        self._power = power if self._power is None else self._power + power

    def compute(self) -> dict[str, object]:
        """Bands as {name: multiple}, ``slope``, and the curve as lists ``frequency`` and ``power``. Collective.

        Bands without a frequency are absent, the slope where there are fewer than two; empty for constant latents.
        """
        if self._power is None:
            raise ValueError("no latent was measured")
        power = summed(self._power)
        height, width = power.shape[-2:]
        radius = _radius(height, width).to(power.device)
        power = power.masked_fill(radius == 0, 0.0)
        totals = power.sum(dim=(1, 2), keepdim=True)
        alive = totals.flatten() > 1e-20 * height * width
        if not bool(alive.any()):
            return {}
        relative = (power / totals)[alive].mean(0) * (height * width - 1)
        found: dict[str, object] = {}
        for name, (low, high) in BANDS.items():
            inside = (radius > low) & (radius <= high)
            if bool(inside.any()):
                found[name] = float(relative[inside].mean())
        side = min(height, width)
        ring = (radius * side).round()
        rings = [k for k in range(1, side // 2 + 1) if bool((ring == k).any())]
        curve = torch.stack([relative[ring == k].mean() for k in rings]) if rings else relative.new_zeros(0)
        if len(rings) > 1:
            found["slope"] = _slope(torch.tensor(rings, dtype=torch.float64).log(), curve.clamp_min(1e-30).log().cpu())
        return {**found, "frequency": [k / side for k in rings], "power": curve.tolist()}


def _radius(height: int, width: int) -> Tensor:
    """Spatial frequency of every Fourier coefficient in cycles per position, (height, width)."""
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (height, width))
    return torch.sqrt(rows[:, None].square() + columns[None].square())


def _slope(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / x.square().sum())

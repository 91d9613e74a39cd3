"""Sampling grids: descending times (steps + 1,), from t_max (the denoiser's) to the data, float32 on the CPU.

Leading, Trailing and Linspace visit whole entries of a discrete path, t = (index + 1) / N, as diffusers'
``timestep_spacing`` does (named in arXiv:2305.08891 table 2); the others serve every path.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.types import Path


class Leading:
    """Indices i (N // steps) + steps_offset, i < steps: DDIM's and LDM's grid; it starts below the noisiest entry."""

    def __init__(self, *, steps_offset: int = 1, end_at_data: bool = True):
        """``end_at_data``: the last time is 0, else table entry 0 (diffusers' ``set_alpha_to_one``; false in SD)."""
        if steps_offset < 0 or (steps_offset == 0 and not end_at_data):
            raise InputError(
                "Leading: expected steps_offset >= 1, or 0 with end_at_data=true as index 0 is visited anyway; "
                f"got steps_offset={steps_offset}, end_at_data={end_at_data}"
            )
        self.steps_offset, self.end_at_data = steps_offset, end_at_data

    def __call__(self, path: Path, steps: int, t_max: float = 1.0) -> Tensor:
        entries = _entries(self, path, steps, t_max)
        index = torch.arange(steps - 1, -1, -1) * (entries // steps) + self.steps_offset
        if int(index[0]) >= entries:
            raise InputError(
                f"Leading: steps_offset={self.steps_offset} with {steps} steps starts at index {int(index[0])}, "
                f"but the path has {entries}; use fewer steps or a smaller offset"
            )
        return _from_index(index, path, -1 if self.end_at_data else 0)


class Trailing:
    """Indices N - i N / steps - 1, rounded: starts at the noisiest entry (arXiv:2305.08891 section 3.3)."""

    def __call__(self, path: Path, steps: int, t_max: float = 1.0) -> Tensor:
        entries = _entries(self, path, steps, t_max)
        index = (entries - torch.arange(steps, dtype=torch.float64) * entries / steps).round() - 1
        return _from_index(index, path, -1)


class Linspace:
    """Indices from N - 1 to 0, evenly spaced and rounded (improved DDPM, arXiv:2102.09672 section 4)."""

    def __call__(self, path: Path, steps: int, t_max: float = 1.0) -> Tensor:
        entries = _entries(self, path, steps, t_max)
        if steps < 2:
            raise InputError("Linspace needs at least 2 steps, as it visits both ends of the table; use Trailing for 1")
        return _from_index(torch.linspace(0, entries - 1, steps, dtype=torch.float64).round().flip(0), path, -1)


class Uniform:
    """Evenly spaced in t from t_max to 0."""

    def __call__(self, path: Path, steps: int, t_max: float = 1.0) -> Tensor:
        return (t_max * _unit(self, steps)).float()


class Shifted:
    """shift t / (1 + (shift - 1) t) of the even grid; shift > 1 dwells near the noise (arXiv:2403.03206 eq. 23)."""

    def __init__(self, *, shift: float):
        if shift <= 0:
            raise InputError(f"Shifted: shift must be positive, got {shift}")
        self.shift = shift

    def __call__(self, path: Path, steps: int, t_max: float = 1.0) -> Tensor:
        t = _unit(self, steps)
        return (t_max * self.shift * t / (1 + (self.shift - 1) * t)).float()


class UniformLogSNR:
    """Evenly spaced in log-SNR from t_max to t_low, then 0 (DPM-Solver, arXiv:2206.00927 section 3.4).

    The even levels start at most at 1 - t_low, as the log-SNR may be infinite at 1; the first time is t_max still.
    """

    def __init__(self, *, t_low: float = 1e-3):
        if not 0 < t_low < 0.5:
            raise InputError(f"UniformLogSNR: t_low must be in (0, 0.5), got {t_low}")
        self.t_low = t_low

    def __call__(self, path: Path, steps: int, t_max: float = 1.0) -> Tensor:
        _unit(self, steps)
        ends = path.log_snr(torch.tensor([min(t_max, 1 - self.t_low), self.t_low], dtype=torch.float64))
        levels = torch.linspace(0, 1, steps, dtype=torch.float64) * (ends[1] - ends[0]) + ends[0]
        times = torch.cat([_time_of_log_snr(path, levels), torch.zeros(1, dtype=torch.float64)])
        times[0] = t_max
        return times.float()


def _unit(grid: object, steps: int) -> Tensor:
    """1 to 0 in ``steps`` even steps, float64."""
    if steps < 1:
        raise InputError(f"{type(grid).__name__}: at least 1 sampling step is needed, got {steps}")
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def _entries(grid: object, path: Path, steps: int, t_max: float) -> int:
    """How many table entries lie up to t_max; raises InputError where the path has no table or too short a one."""
    table = getattr(path, "steps", None)
    name = type(grid).__name__
    if table is None:
        raise InputError(
            f"{name} picks entries of a discrete path, but {type(path).__name__} has no table; use Uniform or Shifted"
        )
    entries = int(t_max * table + 1e-6)
    if not 1 <= steps <= entries:
        raise InputError(f"{name}: expected 1 to {entries} sampling steps (entries of the path's table), got {steps}")
    return entries


def _from_index(index: Tensor, path: Path, last: int) -> Tensor:
    """Times of table indices, with ``last`` (-1 is t = 0) appended."""
    index = torch.cat([index.double(), torch.tensor([last], dtype=torch.float64)])
    return ((index + 1) / path.steps).float()


def _time_of_log_snr(path: Path, levels: Tensor) -> Tensor:
    """The t at which the falling log-SNR takes each level (K,), by 60 bisections of [0, 1]."""
    low, high = torch.zeros_like(levels), torch.ones_like(levels)
    for _ in range(60):
        middle = (low + high) / 2
        below = path.log_snr(middle) > levels
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2

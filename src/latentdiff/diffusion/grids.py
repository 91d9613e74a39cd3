"""Sampling grids: descending times (steps + 1,), from t_max (the denoiser's) to the data, float32 on the CPU.

Leading, Trailing and Linspace visit whole entries of a discrete path, t = (index + 1) / N, as diffusers'
``timestep_spacing`` does (named in arXiv:2305.08891 table 2); the others serve every path.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.types import Path


class Leading:
    """Indices i (N // steps) + steps_offset, i < steps: DDIM's and LDM's grid; it starts below the noisiest entry."""

    def __init__(self, *, steps_offset: int = 1, end_at_data: bool = True, skip_lowest: bool = False):
        """``end_at_data``: the last time is 0, else table entry 0 (diffusers' ``set_alpha_to_one``; false in SD).

        ``skip_lowest``: the grid is laid out for one step more and its lowest index left out, as diffusers' multistep
        solvers (DPM-Solver++, UniPC) do.
        """
        if steps_offset < 0 or (steps_offset == 0 and not end_at_data):
            raise InputError(
                "Leading: expected steps_offset >= 1, or 0 with end_at_data=true as index 0 is visited anyway; "
                f"got steps_offset={steps_offset}, end_at_data={end_at_data}"
            )
        self.steps_offset, self.end_at_data, self.skip_lowest = steps_offset, end_at_data, skip_lowest

    def __call__(self, path: Path, steps: int, t_max: float = 1.0) -> Tensor:
        laid_out = steps + self.skip_lowest
        entries = _entries(self, path, steps, t_max, spare=self.skip_lowest)
        index = torch.arange(laid_out - 1, -1, -1)[:steps] * (entries // laid_out) + self.steps_offset
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

    def __init__(self, *, skip_lowest: bool = False):
        """``skip_lowest``: as in ``Leading``; index 0 is not visited then."""
        self.skip_lowest = skip_lowest

    def __call__(self, path: Path, steps: int, t_max: float = 1.0) -> Tensor:
        laid_out = steps + self.skip_lowest
        entries = _entries(self, path, steps, t_max, spare=self.skip_lowest)
        if laid_out < 2:
            raise InputError("Linspace needs at least 2 steps, as it visits both ends of the table; use Trailing for 1")
        index = torch.linspace(0, entries - 1, laid_out, dtype=torch.float64).round().flip(0)
        return _from_index(index[:steps], path, -1)


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
        return _through(path, levels, t_max)


class Karras:
    """sigma / alpha even in its rho-th root from sigma_max to sigma_min, then 0 (EDM, arXiv:2206.00364 eq. 5).

    On a table it visits times between entries, as diffusers' ``use_karras_sigmas``; on ``KarrasVE`` of the same range
    and rho it is even in t. The first time is t_max still, also where sigma / alpha is infinite there.
    """

    def __init__(self, *, sigma_min: float | None = None, sigma_max: float | None = None, rho: float = 7.0):
        """In units of sigma / alpha; sigma_max is cut to the path's own at t_max.

        None means the path's own range, from the first entry of its table, or KarrasVE's sigma_min, to t_max; EDM's
        0.002 and 80 where it has none and no finite sigma / alpha at t_max.
        """
        if rho < 1 or any(bound is not None and not 0 < bound < math.inf for bound in (sigma_min, sigma_max)):
            raise InputError(
                "Karras: expected rho >= 1 and positive, finite sigma_min and sigma_max (or null); "
                f"got rho={rho}, sigma_min={sigma_min}, sigma_max={sigma_max}"
            )
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho

    def __call__(self, path: Path, steps: int, t_max: float = 1.0) -> Tensor:
        _unit(self, steps)
        highest, table = _ratio(path, t_max), getattr(path, "steps", None)
        default = highest if math.isfinite(highest) else 80.0
        high = min(highest, default if self.sigma_max is None else self.sigma_max)
        low = self.sigma_min
        if low is None:
            low = getattr(path, "sigma_min", 0.002) if table is None else _ratio(path, 1 / table)
        if low >= high:
            raise InputError(
                f"Karras: expected sigma_min below {high:.6g} (the largest sigma / alpha of this grid on "
                f"{type(path).__name__} up to t={t_max:g}), got {low:.6g}"
            )
        root = torch.linspace(high ** (1 / self.rho), low ** (1 / self.rho), steps, dtype=torch.float64)
        return _through(path, -2 * self.rho * torch.log(root), t_max)


def _unit(grid: object, steps: int) -> Tensor:
    """1 to 0 in ``steps`` even steps, float64."""
    if steps < 1:
        raise InputError(f"{type(grid).__name__}: at least 1 sampling step is needed, got {steps}")
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def _entries(grid: object, path: Path, steps: int, t_max: float, spare: int = 0) -> int:
    """How many table entries lie up to t_max; raises InputError where the path has no table or too short a one."""
    table = getattr(path, "steps", None)
    name = type(grid).__name__
    if table is None:
        raise InputError(
            f"{name} picks entries of a discrete path, but {type(path).__name__} has no table; use Uniform or Shifted"
        )
    entries = int(t_max * table + 1e-6)
    if not 1 <= steps <= entries - spare:
        raise InputError(
            f"{name}: expected 1 to {entries - spare} sampling steps (entries of the path's table), got {steps}"
        )
    return entries


def _from_index(index: Tensor, path: Path, last: int) -> Tensor:
    """Times of table indices, with ``last`` (-1 is t = 0) appended."""
    index = torch.cat([index.double(), torch.tensor([last], dtype=torch.float64)])
    assert path.steps is not None  # _entries has looked
    return ((index + 1) / path.steps).float()


def _through(path: Path, log_snr: Tensor, t_max: float) -> Tensor:
    """Times of rising log-SNRs (steps,), the first moved to t_max, with 0 appended."""
    times = torch.cat([path.time_at(log_snr), torch.zeros(1, dtype=torch.float64)])
    times[0] = t_max
    times = times.float()
    if bool((times.diff() >= 0).any()):
        raise InputError(f"{len(log_snr)} steps are too close together for float32 times; use fewer, or a wider range")
    return times


def _ratio(path: Path, t: float) -> float:
    """sigma / alpha at t, infinite at alpha = 0."""
    return math.exp(-path.log_snr(torch.tensor([t], dtype=torch.float64)).item() / 2)

"""Averages with power-function profiles, from which an average of any length is made after training.

arXiv:2312.02696 (EDM2) section 3 and appendix C. Time is counted in updates since training began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from latentdiff.config.errors import InputError
from latentdiff.training.ema import Pairs, shadow_of

LONGEST = 12**-0.5
"""Length of the plain mean of all weights (gamma = 0)."""


class PowerEma(nn.Module):
    """Copies of ``model``, one per length, that follow it with the weight ``gamma`` on the past:

    ``average(T) = sum_t w_t weights(t)`` with w_t the integral of ``(gamma + 1) tau^gamma / T^(gamma + 1)`` over
    (t - 1, t], by ``average <- lerp(average, weights, 1 - (1 - 1 / t)^(gamma + 1))`` after update t (eq. 2). The
    initial weights have no part in it. Frozen submodules are shared, not copied.

    Args:
        model: what is trained.
        lengths: widths of the profiles relative to the time of training, sigma_rel in (0, 0.2887); two different
            ones at least, since one family of profiles spans no other lengths.
    """

    def __init__(self, model: nn.Module, *, lengths: Sequence[float] = (0.05, 0.10)):
        """Raises InputError where the lengths are out of range, or fewer than two."""
        super().__init__()
        if len(set(lengths)) < 2 or len(set(lengths)) < len(lengths):
            raise InputError(f"power_ema.lengths: expected at least two different ones, got {list(lengths)}")
        self.lengths = tuple(float(length) for length in lengths)
        self.gammas = tuple(gamma_of(length) for length in lengths)
        self.averages = nn.ModuleList(shadow_of(model) for _ in lengths)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.count = 0
        """``updates`` where reading it does not wait for a GPU."""
        self._pairs = [Pairs() for _ in lengths]
        self.register_load_state_dict_post_hook(_recount)

    def train(self, mode: bool = True) -> PowerEma:
        return self

    def update(self, model: nn.Module) -> None:
        """Called once after every update of ``model``."""
        self.count += 1
        self.updates.fill_(self.count)
        for gamma, average, pairs in zip(self.gammas, self.averages, self._pairs):
            pairs.move(average, model, 1.0 - (1.0 - 1.0 / self.count) ** (gamma + 1))


@dataclass(frozen=True)
class Profile:
    """The weight of time ``tau`` in an average taken at ``end``: ``(gamma + 1) tau^gamma / end^(gamma + 1)``, or 0
    after ``end``."""

    end: float
    """Updates, at least 1."""
    gamma: float

    @classmethod
    def of(cls, *, end: float, length: float) -> Profile:
        return cls(end=float(end), gamma=gamma_of(length))


def gamma_of(length: float) -> float:
    """The power whose profile has the standard deviation ``length``, relative to the time of training.

    The root of ``length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))`` (eq. 4): 16.97 for 0.05, 6.94 for 0.10.
    Raises InputError outside (0, 0.2887), where gamma would not be positive.
    """
    if not 0 < length < LONGEST:
        raise InputError(f"EMA length: expected one in (0, {LONGEST:.4f}), of the time of training; got {length}")
    inverse = float(length) ** -2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots[np.isreal(roots)].real.max())


def coefficients(given: Sequence[Profile], wanted: Profile) -> tuple[Tensor, float]:
    """Weights x, float64, with which the ``given`` averages sum to the one ``wanted``, and the error of it.

    Least squares over profiles (appendix C.3) with sum x = 1, so that a weight that stands still is kept exactly. The
    error is the distance between the two profiles over the norm of the one wanted, 0 where it is met exactly.
    """
    scale = wanted.end  # times relative to it keep the system's entries near 1
    ends = torch.tensor([profile.end / scale for profile in given], dtype=torch.float64)
    gammas = torch.tensor([profile.gamma for profile in given], dtype=torch.float64)
    end, gamma = torch.ones(1, dtype=torch.float64), torch.tensor([wanted.gamma], dtype=torch.float64)
    products = _inner(ends[:, None], gammas[:, None], ends, gammas)
    towards, norm = _inner(ends, gammas, end, gamma), _inner(end, gamma, end, gamma)
    n = len(given)
    system = torch.ones(n + 1, n + 1, dtype=torch.float64)  # Lagrange's, its last row the sum
    system[:n, :n], system[n, n] = products, 0.0
    right = torch.cat([towards, torch.ones(1, dtype=torch.float64)])
    x = torch.linalg.lstsq(system, right, rcond=1e-12, driver="gelsd").solution[:n]  # equal profiles share their weight
    squared = (x @ products @ x - 2 * x @ towards + norm) / norm
    return x, squared.clamp(min=0).sqrt().item()


def _inner(end_a: Tensor, gamma_a: Tensor, end_b: Tensor, gamma_b: Tensor) -> Tensor:
    """The integral of the product of two profiles (appendix C.3):
    ``(a + 1)(b + 1) / (a + b + 1) (low / high)^gamma / high``, gamma being that of the profile that ends at high."""
    low, high = torch.minimum(end_a, end_b), torch.maximum(end_a, end_b)
    of_high = torch.where(end_a < end_b, gamma_b, gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (low / high) ** of_high / high


def _recount(averages: PowerEma, _: object) -> None:
    averages.count = int(averages.updates)

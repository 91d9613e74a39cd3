"""UniPC, a predictor and a corrector of any order that share their network calls."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.samplers.levels import Level, begin, hook, move
from latentdiff.types import Denoise, NoiseAt, OnStep, Path


class UniPC:
    """UniPC in data prediction (arXiv:2302.04867 section 3).

    From time i to i + 1 UniP of order p adds to the first-order step the differences of earlier x0_hat to x0_hat(i);
    once x0_hat(i + 1) is known, UniC corrects the state at i + 1 with it and raises the order by one, at no call of its
    own. The last state is not corrected, as nothing is evaluated there, nor is one that ``on_step`` replaced.

    Orders rise from 1 in the first steps, and count only times at which lambda = log(alpha / sigma) is finite. A step
    of infinite h is of first order, its state corrected under ``bh2`` alone, as B(h) = h of ``bh1`` is infinite.
    Deterministic: ``noise_at`` is not called.
    """

    def __init__(self, *, order: int = 2, variant: Literal["bh1", "bh2"] = "bh2", lower_order_final: bool = True):
        """``variant``: B(h) = h or e^h - 1 (section 3.1); ``lower_order_final``: orders fall to 1 in the last steps."""
        if order < 1:
            raise InputError(f"UniPC: order must be at least 1 (2 with guidance, 3 without), got {order}")
        if variant not in ("bh1", "bh2"):
            raise InputError(f"UniPC: variant must be bh1 or bh2, got {variant!r}")
        self.order, self.variant, self.lower_order_final = order, variant, lower_order_final

    def __call__(
        self, denoise: Denoise, path: Path, x: Tensor, times: Tensor, noise_at: NoiseAt, on_step: OnStep | None = None
    ) -> Tensor:
        """x (B, ...) at times[0], times (N + 1,) descending -> x at times[-1], float32 (float64 where x is)."""
        x, times, levels = begin(path, x, times)
        weights = [self._weights(levels, i) for i in range(len(levels) - 1)]
        past: list[Tensor] = []  # x0_hat of earlier times, newest first
        predicted = None
        for i, (start, end) in enumerate(pairwise(levels)):
            x0_hat = denoise(x, times[i].expand(len(x)))
            if x is predicted:
                x = _add(x, weights[i - 1][1], [x0_hat, *past[1:]], past[0])
            predicted = _add(move(x, x0_hat, start, end), weights[i][0], past, x0_hat)
            past = [x0_hat, *past[: self.order - 1]]
            x = hook(on_step, i, times[i + 1], predicted, x0_hat)
        return x

    def _weights(self, levels: list[Level], i: int) -> tuple[list[float], list[float]]:
        """Of step i: the predictor's, for the x0_hat of times i - 1, i - 2, ... less x0_hat(i), and what the corrector
        then adds, for those of times i + 1, i - 1, i - 2, ... less x0_hat(i)."""
        here, end = levels[i].half_log_snr, levels[i + 1]
        h = end.half_log_snr - here
        b_of_h = -h if self.variant == "bh1" else math.expm1(-h)
        if math.isinf(h):
            return [], [-end.alpha * b_of_h / 2] if math.isfinite(b_of_h) else []
        remaining = len(levels) - 1 - i if self.lower_order_final else self.order
        earlier = levels[max(0, i + 1 - min(self.order, remaining)) : i]
        places = [(level.half_log_snr - here) / h for level in reversed(earlier) if level.alpha > 0]
        predictor = [rho / place for rho, place in zip(_solve(places, h, b_of_h), places)]
        *rhos, newest = _solve([*places, 1.0], h, b_of_h)
        corrector = [newest, *(rho / place - known for rho, place, known in zip(rhos, places, predictor))]
        scale = -end.alpha * b_of_h
        return [scale * weight for weight in predictor], [scale * weight for weight in corrector]


def _solve(places: list[float], h: float, b_of_h: float) -> list[float]:
    """rho of sum_m rho_m places_m^(k - 1) = k! phi_(k + 1)(-h) (-h) / B(h), k = 1 .. K; 1/2 for K = 1.

    phi_1(z) = (e^z - 1) / z and phi_(k + 1)(z) = (phi_k(z) - 1 / k!) / z.
    """
    if len(places) <= 1:
        return [0.5] * len(places)
    phi, right = math.expm1(-h) / -h, []
    for k in range(1, len(places) + 1):
        phi = (phi - 1 / math.factorial(k)) / -h
        right.append(math.factorial(k) * phi * -h / b_of_h)
    nodes = torch.tensor(places, dtype=torch.float64, device="cpu")
    left = torch.stack([nodes**power for power in range(len(places))])
    return torch.linalg.solve(left, torch.tensor(right, dtype=torch.float64, device="cpu")).tolist()


def _add(x: Tensor, weights: list[float], values: list[Tensor], base: Tensor) -> Tensor:
    """x + sum of weight (value - base)."""
    for weight, value in zip(weights, values):
        x = x + weight * (value - base)
    return x

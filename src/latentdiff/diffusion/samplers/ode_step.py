"""The first-order step that the samplers share."""

from __future__ import annotations

from torch import Tensor


def ode_step(x: Tensor, x0_hat: Tensor, start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]) -> Tensor:
    """The probability flow from (alpha, sigma) ``start`` to ``end`` with ``x0_hat`` held constant.

    x_end = (sigma_end / sigma_start) x + (alpha_end - alpha_start sigma_end / sigma_start) x0_hat. The factor of
    x0_hat is -alpha_end (e^-h - 1) of DPM-Solver++ (arXiv:2211.01095 section 4), h = lambda_end - lambda_start,
    without its logarithms: finite at alpha_start = 0 and at sigma_end = 0.
    """
    ratio = end[1] / start[1]
    return ratio * x + (end[0] - start[0] * ratio) * x0_hat

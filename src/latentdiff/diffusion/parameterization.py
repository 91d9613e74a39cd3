"""What the network predicts, and how x0 follows from it.

Each class gives the ``network_input`` made of x_t, the regression ``target``, the x0 that an output means, and
``x0_gain``, the size of d x0 / d output: ``|x0_hat - x0| = x0_gain |output - target|``.

Which pairs of path and parameterization are allowed (``check_pair``); zero is zero terminal SNR:

============  =============  =========  ============  ================  =========
.             RectifiedFlow  CosineVP   DDPM tables   the same, zero    KarrasVE
============  =============  =========  ============  ================  =========
Epsilon       t <= 0.99      t <= 0.99  allowed       t <= 0.99         refused
Sample        allowed        allowed    allowed       allowed           refused
V             allowed        allowed    allowed       allowed           refused
Velocity      allowed        allowed    refused       refused           refused
Karras        allowed        allowed    allowed       allowed           allowed
============  =============  =========  ============  ================  =========
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.coefficients import per_sample
from latentdiff.types import Parameterization, Path

T_MAX_WHERE_SINGULAR = 0.99
"""Largest t of training and sampling with a prediction whose x0 gain is infinite at t = 1."""

LARGEST_INPUT = 2.0
"""Largest standard deviation that a network is fed at t = 1, for data of standard deviation 1."""


class Epsilon:
    """The noise (DDPM, arXiv:2006.11239 eq. 14): x0 = (x_t - sigma eps) / alpha."""

    def network_input(self, x_t: Tensor, path: Path, t: Tensor) -> Tensor:
        return x_t

    def target(self, x0: Tensor, noise: Tensor, path: Path, t: Tensor) -> Tensor:
        return noise

    def to_x0(self, output: Tensor, x_t: Tensor, path: Path, t: Tensor) -> Tensor:
        alpha, sigma = (per_sample(c, x_t) for c in path.alpha_sigma(t))
        return (x_t - sigma * output) / alpha

    def x0_gain(self, path: Path, t: Tensor) -> Tensor:
        alpha, sigma = path.alpha_sigma(t)
        return sigma / alpha


class Sample:
    """The clean data x0 itself."""

    def network_input(self, x_t: Tensor, path: Path, t: Tensor) -> Tensor:
        return x_t

    def target(self, x0: Tensor, noise: Tensor, path: Path, t: Tensor) -> Tensor:
        return x0

    def to_x0(self, output: Tensor, x_t: Tensor, path: Path, t: Tensor) -> Tensor:
        return output

    def x0_gain(self, path: Path, t: Tensor) -> Tensor:
        return torch.ones_like(path.alpha_sigma(t)[0])


class V:
    """v = alpha noise - sigma x0 (progressive distillation, arXiv:2202.00512 section 4).

    x0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2); the denominator is 1 on variance-preserving paths.
    """

    def network_input(self, x_t: Tensor, path: Path, t: Tensor) -> Tensor:
        return x_t

    def target(self, x0: Tensor, noise: Tensor, path: Path, t: Tensor) -> Tensor:
        alpha, sigma = (per_sample(c, x0) for c in path.alpha_sigma(t))
        return alpha * noise - sigma * x0

    def to_x0(self, output: Tensor, x_t: Tensor, path: Path, t: Tensor) -> Tensor:
        alpha, sigma = (per_sample(c, x_t) for c in path.alpha_sigma(t))
        return (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)

    def x0_gain(self, path: Path, t: Tensor) -> Tensor:
        alpha, sigma = path.alpha_sigma(t)
        return sigma / (alpha**2 + sigma**2)


class Velocity:
    """The path's velocity u = alpha' x0 + sigma' noise (flow matching, arXiv:2210.02747 section 4).

    x0 = (sigma' x_t - sigma u) / (sigma' alpha - sigma alpha').
    """

    def network_input(self, x_t: Tensor, path: Path, t: Tensor) -> Tensor:
        return x_t

    def target(self, x0: Tensor, noise: Tensor, path: Path, t: Tensor) -> Tensor:
        d_alpha, d_sigma = (per_sample(c, x0) for c in path.derivatives(t))
        return d_alpha * x0 + d_sigma * noise

    def to_x0(self, output: Tensor, x_t: Tensor, path: Path, t: Tensor) -> Tensor:
        _, sigma = path.alpha_sigma(t)
        _, d_sigma = path.derivatives(t)
        sigma, d_sigma, wronskian = (per_sample(c, x_t) for c in (sigma, d_sigma, self._wronskian(path, t)))
        return (d_sigma * x_t - sigma * output) / wronskian

    def x0_gain(self, path: Path, t: Tensor) -> Tensor:
        return path.alpha_sigma(t)[1] / self._wronskian(path, t)

    def _wronskian(self, path: Path, t: Tensor) -> Tensor:
        """sigma' alpha - sigma alpha', positive because the log-SNR falls."""
        alpha, sigma = path.alpha_sigma(t)
        d_alpha, d_sigma = path.derivatives(t)
        return d_sigma * alpha - sigma * d_alpha


class Karras:
    """EDM's preconditioning on any path (arXiv:2206.00364 eq. 7 and table 1, written for x_t = alpha x0 + sigma noise).

    EDM's state is y = x_t / alpha and its noise level s = sigma / alpha: x0 = c_skip(s) y + c_out(s) f(c_in(s) y).
    Multiplied out with n = sqrt(sigma^2 + sigma_data^2 alpha^2), the standard deviation of x_t:

    - the network reads x_t / n,
    - x0 = sigma_data^2 alpha / n^2 x_t + sigma_data sigma / n f,
    - the target is (sigma / sigma_data x0 - sigma_data alpha noise) / n, of variance 1 at every t,

    finite at alpha = 0 and at sigma = 0. With sigma_data = 1 on a variance-preserving path it is -v.
    """

    def __init__(self, *, sigma_data: float = 1.0):
        """``sigma_data``: the standard deviation of the data; 1 for whitened latents (EDM's pixels: 0.5)."""
        if sigma_data <= 0:
            raise InputError(f"Karras: sigma_data is a standard deviation and must be positive, got {sigma_data}")
        self.sigma_data = sigma_data

    def network_input(self, x_t: Tensor, path: Path, t: Tensor) -> Tensor:
        return x_t / per_sample(self._coefficients(path, t)[2], x_t)

    def target(self, x0: Tensor, noise: Tensor, path: Path, t: Tensor) -> Tensor:
        alpha, sigma, norm = (per_sample(c, x0) for c in self._coefficients(path, t))
        return (sigma / self.sigma_data * x0 - self.sigma_data * alpha * noise) / norm

    def to_x0(self, output: Tensor, x_t: Tensor, path: Path, t: Tensor) -> Tensor:
        alpha, sigma, norm = (per_sample(c, x_t) for c in self._coefficients(path, t))
        return self.sigma_data**2 * alpha / norm**2 * x_t + self.sigma_data * sigma / norm * output

    def x0_gain(self, path: Path, t: Tensor) -> Tensor:
        _, sigma, norm = self._coefficients(path, t)
        return self.sigma_data * sigma / norm

    def _coefficients(self, path: Path, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma and n, each (B,)."""
        alpha, sigma = path.alpha_sigma(t)
        return alpha, sigma, (sigma**2 + (self.sigma_data * alpha) ** 2).sqrt()


def check_pair(path: Path, parameterization: Parameterization) -> float:
    """The largest t at which x0 may be computed from the output.

    Raises InputError for a velocity on a discrete table, where t is only an index and has no derivative of its own, and
    where the network would be fed an x_t that has grown with the noise.
    """
    name = f"{type(parameterization).__name__} on {type(path).__name__}"
    if isinstance(parameterization, Velocity) and getattr(path, "steps", None) is not None:
        raise InputError(
            f"{name}: a table of discrete steps has no velocity in t; use V, Epsilon or Sample, or RectifiedFlow"
        )
    end = torch.ones(1, dtype=torch.float64, device="cpu")
    alpha, sigma = path.alpha_sigma(end)
    fed = parameterization.network_input((alpha**2 + sigma**2).sqrt(), path, end).item()
    if fed > LARGEST_INPUT:
        raise InputError(
            f"{name}: the network would be fed values of standard deviation {fed:.3g} at t = 1; use Karras, which "
            "scales its input (V on CosineVP is the same prediction), or a path that keeps x_t of order 1"
        )
    gain = parameterization.x0_gain(path, end)
    return 1.0 if bool(torch.isfinite(gain)) else T_MAX_WHERE_SINGULAR

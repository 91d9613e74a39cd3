"""Gaussian probability paths ``x_t = alpha(t) x0 + sigma(t) noise``, t in [0, 1], 0 = data and 1 = noise.

Coefficients are float32, or float64 where ``t`` is. ``steps`` is the length of a discrete path's table, None on a
continuous path.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff.config.errors import InputError


def per_sample(coefficient: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1) with as many axes as ``like``."""
    return coefficient.view(-1, *[1] * (like.ndim - 1))


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision and integers to float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RectifiedFlow:
    """Straight lines, alpha = 1 - t and sigma = t (rectified flow, arXiv:2209.03003; SD3, arXiv:2403.03206 eq. 13)."""

    steps: int | None = None

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = at_least_float32(t)
        return 1 - t, t

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """d alpha / dt and d sigma / dt."""
        one = torch.ones_like(at_least_float32(t))
        return -one, one

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2): +inf at t = 0, -inf at t = 1."""
        t = at_least_float32(t)
        return 2 * (torch.log1p(-t) - torch.log(t))

    def mix(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of shape (B, ...) for t (B,)."""
        return _mix(self, x0, noise, t)

    def network_time(self, t: Tensor) -> Tensor:
        """What the backbone is told: 1000 t, the range of the sinusoidal embedding (as SD3)."""
        return 1000 * at_least_float32(t)


class DiscreteVP:
    """The variance-preserving path of a table of betas (DDPM, arXiv:2006.11239 eq. 4), read at any t.

    ``t = (i + 1) / N`` is table entry i, alpha^2 = prod_{j <= i} (1 - beta_j). Between entries the log-SNR is linear in
    t; below 1 / N sigma is linear in t down to alpha(0) = 1, sigma(0) = 0. log-SNR falls strictly throughout.
    """

    def __init__(self, *, betas: Tensor):
        """``betas``: (N,), N >= 2, each in (0, 1)."""
        betas = betas.detach().to("cpu", torch.float64)
        if betas.ndim != 1 or len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
            raise InputError(f"betas must be a vector of at least 2 values in (0, 1), got {betas}")
        self.steps: int = len(betas)
        alpha_bar = torch.cumprod(1 - betas, 0)
        self._sigma_first = (1 - alpha_bar[0].item()) ** 0.5
        self._log_snr = torch.logit(alpha_bar)
        self._on_device: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t, position = self._locate(t)
        log_snr = self._interpolate(position)
        sigma = torch.where(position < 0, self._sigma_below(t), torch.sigmoid(-log_snr).sqrt())
        alpha = torch.where(position < 0, (1 - sigma**2).sqrt(), torch.sigmoid(log_snr).sqrt())
        return alpha, sigma

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """d alpha / dt and d sigma / dt; at a table entry those of the segment above it, at t = 1 of the last one."""
        alpha, sigma = self.alpha_sigma(t)
        t, position = self._locate(t)
        table, lower = self._table(t), self._lower(position)
        slope = self.steps * (table[lower + 1] - table[lower])  # of the log-SNR
        below = self._sigma_first * self.steps
        d_sigma = torch.where(position < 0, below, -0.5 * sigma * alpha**2 * slope)
        d_alpha = torch.where(position < 0, -sigma * below / alpha, 0.5 * alpha * sigma**2 * slope)
        return d_alpha, d_sigma

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2): +inf at t = 0, finite at t = 1."""
        t, position = self._locate(t)
        sigma = self._sigma_below(t)
        return torch.where(position < 0, torch.log1p(-(sigma**2)) - 2 * torch.log(sigma), self._interpolate(position))

    def mix(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of shape (B, ...) for t (B,)."""
        return _mix(self, x0, noise, t)

    def network_time(self, t: Tensor) -> Tensor:
        """The table index t N - 1 that LDM and diffusers feed their networks, not below 0."""
        return self._locate(t)[1].clamp(min=0)

    def _locate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t and its table position, -1 at t = 0 to N - 1 at t = 1, whole where t is an entry up to rounding."""
        t = at_least_float32(t)
        position = t * self.steps - 1
        whole = position.round()
        rounding = 2 * self.steps * torch.finfo(t.dtype).eps
        return t, torch.where((position - whole).abs() <= rounding, whole, position)

    def _lower(self, position: Tensor) -> Tensor:
        return position.floor().clamp(0, self.steps - 2).long()

    def _interpolate(self, position: Tensor) -> Tensor:
        """log-SNR at a position >= 0."""
        table, lower = self._table(position), self._lower(position)
        return torch.lerp(table[lower], table[lower + 1], position - lower)

    def _sigma_below(self, t: Tensor) -> Tensor:
        return self._sigma_first * (t * self.steps).clamp(max=1)

    def _table(self, like: Tensor) -> Tensor:
        key = (like.device, like.dtype)
        if key not in self._on_device:
            self._on_device[key] = self._log_snr.to(like.dtype).to(like.device)
        return self._on_device[key]


class ScaledLinearDDPM(DiscreteVP):
    """LDM's schedule: beta linear in its square root (CompVis/latent-diffusion "linear", diffusers "scaled_linear")."""

    def __init__(self, *, beta_start: float = 0.00085, beta_end: float = 0.012, steps: int = 1000):
        if not 0 < beta_start <= beta_end < 1:
            raise InputError(f"betas must satisfy 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}")
        root = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64, device="cpu")
        super().__init__(betas=root**2)


def _mix(path: RectifiedFlow | DiscreteVP, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    alpha, sigma = path.alpha_sigma(t)
    return per_sample(alpha, x0) * x0 + per_sample(sigma, x0) * noise

"""Paths given by a table of betas: DDPM's, LDM's, and both with zero terminal SNR. See ``diffusion.path``."""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.coefficients import at_least_float32, mix


class DiscreteVP:
    """The variance-preserving path of a table of betas (DDPM, arXiv:2006.11239 eq. 4), read at any t.

    ``t = (i + 1) / N`` is table entry i, alpha^2 = prod_{j <= i} (1 - beta_j). Between entries the log-SNR is linear in
    t; below 1 / N sigma is linear in t down to alpha(0) = 1, sigma(0) = 0. Under zero terminal SNR alpha is linear in t
    between the last two entries, down to alpha(1) = 0. log-SNR falls strictly throughout.
    """

    def __init__(self, *, betas: Tensor, zero_terminal_snr: bool = False):
        """``betas``: (N,), N >= 2 (3 with ``zero_terminal_snr``), each in (0, 1).

        ``zero_terminal_snr`` shifts and scales the table's alphas so that the last is 0 and the first stays
        (arXiv:2305.08891 algorithm 1): training then sees pure noise, which sampling starts from.
        """
        betas = betas.detach().to("cpu", torch.float64)
        least = 3 if zero_terminal_snr else 2
        if betas.ndim != 1 or len(betas) < least or not bool(((betas > 0) & (betas < 1)).all()):
            raise InputError(f"betas must be a vector of at least {least} values in (0, 1), got {betas}")
        self.steps: int = len(betas)
        self.zero_terminal_snr = zero_terminal_snr
        alpha_bar = torch.cumprod(1 - betas, 0)
        if zero_terminal_snr:
            root = alpha_bar.sqrt()
            alpha_bar = ((root - root[-1]) * (root[0] / (root[0] - root[-1])))[:-1] ** 2  # the last, 0, is left out
        self._log_snr = torch.logit(alpha_bar)
        self._sigma_first = (1 - alpha_bar[0].item()) ** 0.5
        self._alpha_last = alpha_bar[-1].item() ** 0.5
        self._on_device: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t, position = self._locate(t)
        log_snr, below = self._interpolate(position), position < 0
        sigma = torch.where(below, self._sigma_below(t), torch.sigmoid(-log_snr).sqrt())
        alpha = torch.where(below, (1 - sigma**2).sqrt(), torch.sigmoid(log_snr).sqrt())
        if self.zero_terminal_snr:
            tail, alpha_tail = self._in_tail(position), self._alpha_tail(position)
            sigma = torch.where(tail, (1 - alpha_tail**2).sqrt(), sigma)
            alpha = torch.where(tail, alpha_tail, alpha)
        return alpha, sigma

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """d alpha / dt and d sigma / dt; at a table entry those of the segment above it, at t = 1 of the last one."""
        alpha, sigma = self.alpha_sigma(t)
        t, position = self._locate(t)
        table, lower = self._table(t), self._lower(position)
        slope = self.steps * (table[lower + 1] - table[lower])  # of the log-SNR
        below, first = position < 0, self._sigma_first * self.steps
        d_sigma = torch.where(below, first, -0.5 * sigma * alpha**2 * slope)
        d_alpha = torch.where(below, -sigma * first / alpha, 0.5 * alpha * sigma**2 * slope)
        if self.zero_terminal_snr:
            tail, last = self._in_tail(position), self._alpha_last * self.steps
            d_sigma = torch.where(tail, alpha * last / sigma, d_sigma)
            d_alpha = torch.where(tail, -last, d_alpha)
        return d_alpha, d_sigma

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2): +inf at t = 0; at t = 1 -inf under zero terminal SNR, finite otherwise."""
        t, position = self._locate(t)
        sigma, middle = self._sigma_below(t), self._interpolate(position)
        if self.zero_terminal_snr:
            alpha = self._alpha_tail(position)
            end = 2 * torch.log(alpha) - torch.log1p(-(alpha**2))
            middle = torch.where(self._in_tail(position), end, middle)
        return torch.where(position < 0, torch.log1p(-(sigma**2)) - 2 * torch.log(sigma), middle)

    def time_at(self, log_snr: Tensor) -> Tensor:
        """The t of a log-SNR; 1 for any below that of the last entry."""
        log_snr = at_least_float32(log_snr)
        table = self._table(log_snr)
        lower = (torch.searchsorted(-table, -log_snr, right=True) - 1).clamp(0, len(table) - 2)
        place = ((table[lower] - log_snr) / (table[lower] - table[lower + 1])).clamp(max=1)
        position = lower + place
        if self.zero_terminal_snr:
            tail = self.steps - 1 - torch.sigmoid(log_snr).sqrt() / self._alpha_last
            position = torch.where(log_snr < table[-1], tail, position)
        below = torch.sigmoid(-log_snr).sqrt() / self._sigma_first - 1
        return (torch.where(log_snr > table[0], below, position) + 1) / self.steps

    def mix(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of shape (B, ...) for t (B,)."""
        return mix(self, x0, noise, t)

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
        return position.floor().clamp(0, len(self._log_snr) - 2).long()

    def _interpolate(self, position: Tensor) -> Tensor:
        """log-SNR at a position from 0 to the last finite entry."""
        table, lower = self._table(position), self._lower(position)
        return torch.lerp(table[lower], table[lower + 1], position - lower)

    def _sigma_below(self, t: Tensor) -> Tensor:
        return self._sigma_first * (t * self.steps).clamp(max=1)

    def _in_tail(self, position: Tensor) -> Tensor:
        """Where alpha is linear down to 0."""
        return position >= self.steps - 2

    def _alpha_tail(self, position: Tensor) -> Tensor:
        return self._alpha_last * (self.steps - 1 - position).clamp(0, 1)

    def _table(self, like: Tensor) -> Tensor:
        """The finite log-SNRs, falling."""
        key = (like.device, like.dtype)
        if key not in self._on_device:
            self._on_device[key] = self._log_snr.to(like.dtype).to(like.device)
        return self._on_device[key]


class LinearDDPM(DiscreteVP):
    """DDPM's schedule: beta linear (arXiv:2006.11239 section 4; diffusers "linear")."""

    def __init__(
        self,
        *,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        steps: int = 1000,
        zero_terminal_snr: bool = False,
    ):
        _check_ends(beta_start, beta_end)
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64, device="cpu")
        super().__init__(betas=betas, zero_terminal_snr=zero_terminal_snr)


class ScaledLinearDDPM(DiscreteVP):
    """LDM's schedule: beta linear in its square root (CompVis/latent-diffusion "linear", diffusers "scaled_linear")."""

    def __init__(
        self,
        *,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        steps: int = 1000,
        zero_terminal_snr: bool = False,
    ):
        _check_ends(beta_start, beta_end)
        root = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64, device="cpu")
        super().__init__(betas=root**2, zero_terminal_snr=zero_terminal_snr)


def _check_ends(beta_start: float, beta_end: float) -> None:
    if not 0 < beta_start <= beta_end < 1:
        raise InputError(f"betas must satisfy 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}")

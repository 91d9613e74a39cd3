"""Laws of the training time t, as inverse distribution functions.

Each takes uniforms u (B,) in [0, 1), keyed or stratified as the caller likes, to t (B,) in [0, t_max]. As t grows with
u, evenly spread u (``noise.Draws.stratified``) give evenly spread quantiles of the law.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.types import Path


class Uniform:
    """t uniform in [0, t_max)."""

    def __call__(self, u: Tensor, t_max: float = 1.0) -> Tensor:
        return u * t_max


class LogitNormal:
    """logit(t) ~ N(mean, std^2), cut off at t_max (SD3, arXiv:2403.03206 section 3.1, eq. 19)."""

    def __init__(self, *, mean: float = 0.0, std: float = 1.0):
        if std <= 0:
            raise InputError(f"LogitNormal: std must be positive, got {std}")
        self.mean, self.std = mean, std

    def __call__(self, u: Tensor, t_max: float = 1.0) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u * self._cdf(t_max)))

    def _cdf(self, t: float) -> float:
        if t >= 1:
            return 1.0
        return _normal_cdf((math.log(t / (1 - t)) - self.mean) / self.std)


class DiscreteUniform:
    """Each of the table entries t = 1/N, 2/N, ... up to t_max equally likely (DDPM, arXiv:2006.11239 algorithm 1)."""

    def __init__(self, *, steps: int):
        if steps < 1:
            raise InputError(f"DiscreteUniform: steps must be at least 1, got {steps}")
        self.steps = steps

    def __call__(self, u: Tensor, t_max: float = 1.0) -> Tensor:
        entries = max(1, math.floor(t_max * self.steps + 1e-6))
        index = (u * entries).floor().clamp(max=entries - 1)
        return (index + 1) / self.steps


class LogNormalSigma:
    """ln(sigma / alpha) ~ N(mean, std^2), cut off at t_max (EDM, arXiv:2206.00364 table 1, section 5).

    EDM's P_mean -1.2 and P_std 1.2 are for data of standard deviation 0.5; whitened latents have 1, where the same law
    has a mean ln 2 higher.
    """

    def __init__(self, *, path: Path, mean: float = -1.2, std: float = 1.2):
        """``path``: the denoiser's, through which a noise level is a t."""
        if std <= 0:
            raise InputError(f"LogNormalSigma: std must be positive, got {std}")
        self.path, self.mean, self.std = path, mean, std

    def __call__(self, u: Tensor, t_max: float = 1.0) -> Tensor:
        log_level = self.mean + self.std * torch.special.ndtri(u * self._cdf(t_max))
        return self.path.time_at(-2 * log_level).clamp(max=t_max)

    def _cdf(self, t: float) -> float:
        log_level = -0.5 * self.path.log_snr(torch.tensor(t, dtype=torch.float64, device="cpu")).item()
        return _normal_cdf((log_level - self.mean) / self.std)


class Shifted:
    """SD3's resolution shift around another law: t = shift s / (1 + (shift - 1) s) with s of ``law``.

    On rectified flow this multiplies sigma / alpha by ``shift``, so that an image of ``shift^2`` times as many pixels
    loses as much of its content as before (arXiv:2403.03206 eq. 23). ``grids.Shifted`` is the same for sampling.
    """

    def __init__(self, *, law: Callable[..., Tensor], shift: float):
        """``law``: of this module; ``shift``: 1 changes nothing, SD3 uses 3 at 1024 px."""
        if shift <= 0:
            raise InputError(f"Shifted: shift must be positive, got {shift}")
        _refuse_curriculum("Shifted.law", law)
        self.law, self.shift = law, shift

    def __call__(self, u: Tensor, t_max: float = 1.0) -> Tensor:
        s = self.law(u, t_max / (self.shift - (self.shift - 1) * t_max))
        return (self.shift * s / (1 + (self.shift - 1) * s)).clamp(max=t_max)


class Curriculum:
    """One law first, another afterwards: training from high noise to low (arXiv:2403.10348 section 4).

    At t near 1 the condition is all that the network can read. Which attribute belongs to which object of a caption is
    learned there in few batches, and kept; among all t it may not be learned at all (docs/results.md).
    """

    def __init__(
        self, *, first: Callable[..., Tensor], then: Callable[..., Tensor], batches: int, total: int | None = None
    ):
        """``first`` rules ``batches`` training batches, of a run of ``total`` batches at most two in five.

        Raises InputError where ``batches`` is negative, or a law is a curriculum itself.
        """
        if batches < 0:
            raise InputError(f"Curriculum: batches must be at least 0, got {batches}")
        _refuse_curriculum("Curriculum.first", first)
        _refuse_curriculum("Curriculum.then", then)
        self.first, self.then = first, then
        self.batches = batches if total is None else min(batches, 2 * total // 5)

    def at(self, batch: int | None) -> Callable[..., Tensor]:
        """The law of a training batch, counted from 0; None means that training is over."""
        return self.first if batch is not None and batch < self.batches else self.then


def _refuse_curriculum(where: str, law: object) -> None:
    if isinstance(law, Curriculum):
        raise InputError(f"{where}: expected a law of t, got a Curriculum of two; put the Curriculum outermost")


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))

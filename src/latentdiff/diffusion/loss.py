"""The training loss of a denoiser."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from latentdiff.diffusion.coefficients import at_least_float32
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.timesteps import Curriculum
from latentdiff.diffusion.weighting import Weighting
from latentdiff.types import Conditioning


class DiffusionLoss:
    """Weighted squared error between the output and its target, averaged over (C, h, w), one value per sample."""

    def __init__(self, *, timesteps: Callable[..., Tensor], weighting: Weighting):
        """``timesteps``: a law of ``diffusion.timesteps``; ``weighting``: of ``diffusion.weighting``."""
        self.timesteps = timesteps
        self.weighting = weighting

    def sample_t(self, u: Tensor, t_max: float = 1.0, batch: int | None = None) -> Tensor:
        """Uniforms u (B,) in [0, 1) -> times (B,) of a training batch, counted from 0; ``t_max`` is the denoiser's."""
        law = self.timesteps.at(batch) if isinstance(self.timesteps, Curriculum) else self.timesteps
        return law(u, t_max)

    def __call__(self, denoiser: Denoiser, x0: Tensor, noise: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """x0 and noise (B, C, h, w), t (B,) -> (B,) in float32."""
        path, parameterization = denoiser.path, denoiser.parameterization
        x0, noise = at_least_float32(x0), at_least_float32(noise)
        output = denoiser(path.mix(x0, noise, t), t, cond)
        error = at_least_float32(output) - parameterization.target(x0, noise, path, t)
        return self.weighting(path, parameterization, t) * (error**2).flatten(1).mean(1)

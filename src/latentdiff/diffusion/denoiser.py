"""The backbone with the path and the parameterization it is trained for: training and sampling cannot disagree."""

from __future__ import annotations

from torch import Tensor, nn

from latentdiff.diffusion.coefficients import at_least_float32
from latentdiff.diffusion.parameterization import check_pair
from latentdiff.types import Conditioning, Parameterization, Path


class Denoiser(nn.Module):
    """Calls the backbone on the parameterization's input at the path's network time and reads x0 off its output.

    ``t_max`` is the largest t at which ``denoise`` is finite: training goes up to it and sampling starts there.
    """

    def __init__(self, *, backbone: nn.Module, path: Path, parameterization: Parameterization):
        """Raises InputError where the path refuses the parameterization (see docs/math.md)."""
        super().__init__()
        self.t_max = check_pair(path, parameterization)
        self.backbone = backbone
        self.path = path
        self.parameterization = parameterization

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """x_t (B, C, h, w), t (B,) in [0, 1] -> the backbone's output (B, C, h, w), in its own precision."""
        x = self.parameterization.network_input(x_t, self.path, t)
        return self.backbone(x, self.path.network_time(t), cond)

    def denoise(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The estimate of x0 (B, C, h, w) in float32 (float64 for float64 input)."""
        output = at_least_float32(self(x_t, t, cond))
        return self.parameterization.to_x0(output, at_least_float32(x_t), self.path, t)

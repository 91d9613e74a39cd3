"""No condition at all: unconditional models."""

from __future__ import annotations

from torch import Tensor, nn

from latentdiff.diffusion.noise import Draws
from latentdiff.types import Batch, Codec, Conditioning


class Unconditional(nn.Module):
    """Every batch -> a conditioning without parts."""

    drop = 0.0
    parts = ()

    def forward(self, batch: Batch, codec: Codec | None = None, draws: Draws | None = None) -> Conditioning:
        return Conditioning()

    def null(self, batch: Batch, codec: Codec | None = None) -> Conditioning:
        return Conditioning()

    def alone(self, batch: Batch, codec: Codec | None = None) -> dict[str, Conditioning]:
        return {}

    def dropped(self, draws: Draws) -> dict[str, Tensor]:
        return {}

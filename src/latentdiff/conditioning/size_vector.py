"""Sizes and crop as a vector (SDXL, arXiv:2307.01952, section 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentdiff.conditioning.dropping import check_drop, dropped_samples
from latentdiff.conditioning.reading import field_of
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.nn.embeddings import timestep_embedding
from latentdiff.types import Batch, Codec, Conditioning

NUMBERS = 6


class SizeVector(nn.Module):
    """The six numbers of ``Batch.size`` -> (B, 6 x frequencies): each one's sinusoidal embedding, one after the other.

    Nothing is learned. The null condition is zeros, which no size gives (cosines of 0 are 1): what SDXL's training puts
    in the place of a part that it drops. SDXL never drops the sizes, and guidance has them on both sides: that is
    ``drop`` 0 in a ``Composite``, the default here.

    Args:
        frequencies: width of each number's embedding; 256 (1,536 in all) is SDXL's.
        drop: probability that training sees zeros instead.

    Raises:
        InputError: an odd number of frequencies, a ``drop`` that is no probability; when called, a batch without sizes.
    """

    parts = ("size",)

    def __init__(self, *, frequencies: int = 256, drop: float = 0.0):
        super().__init__()
        if frequencies < 2 or frequencies % 2:
            raise InputError(f"SizeVector: expected an even number of frequencies (SDXL: 256), got {frequencies}")
        self.frequencies, self.drop = frequencies, check_drop(drop)

    def forward(self, batch: Batch, codec: Codec | None = None, draws: Draws | None = None) -> Conditioning:
        size = field_of(batch, "size", "add latentdiff.data.sizes.SizeAndCrop to the data's conditions")
        embedded = timestep_embedding(size.flatten(), self.frequencies)
        cond = Conditioning(vector=embedded.view(len(batch), NUMBERS * self.frequencies))
        if draws is None or self.drop == 0:
            return cond
        return cond.where(~self.dropped(draws)["size"], self.null(batch))

    def null(self, batch: Batch, codec: Codec | None = None) -> Conditioning:
        device = None if batch.size is None else batch.size.device
        return Conditioning(vector=torch.zeros(len(batch), NUMBERS * self.frequencies, device=device))

    def alone(self, batch: Batch, codec: Codec | None = None) -> dict[str, Conditioning]:
        return {"size": self(batch, codec)}

    def dropped(self, draws: Draws) -> dict[str, Tensor]:
        return {"size": dropped_samples(draws, "size", self.drop)}

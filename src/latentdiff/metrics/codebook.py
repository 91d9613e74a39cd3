"""How much of a codebook is used over a whole set of images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentdiff.metrics.gather import summed
from latentdiff.models.autoencoder.bottlenecks.codes import check_indices, use_of_codes


class CodebookUsage:
    """Counts of every entry over a set; exact for any split over batches and ranks.

    Args:
        entries: size of the codebook.
        device: where the indices are.
    """

    def __init__(self, *, entries: int, device: torch.device | str = "cpu"):
        self._counts = torch.zeros(entries, dtype=torch.int64, device=device)

    def update(self, indices: Tensor) -> None:
        """Integer indices of any shape. Raises InputError where one is no entry."""
        check_indices(indices, len(self._counts))
        self._counts += torch.bincount(indices.flatten(), minlength=len(self._counts))

    def compute(self) -> dict[str, float]:
        """``entries``; ``usage``, the share seen at least once; ``perplexity``, e to the entropy in nats: as many
        entries, equally used, would say as much; ``bits``, that entropy per index in bits. Collective."""
        counts = summed(self._counts)
        if int(counts.sum()) == 0:
            raise ValueError("no codebook index was counted")
        use = {name: float(value) for name, value in use_of_codes(counts.double()).items()}
        return {"entries": len(counts), **use, "bits": math.log2(use["perplexity"])}

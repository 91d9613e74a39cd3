"""How much of a codebook is used over a whole set of images."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from latentdiff.models.autoencoder.bottlenecks.codes import use_of_codes


def codebook_usage(indices: Iterable[Tensor], entries: int) -> dict[str, float]:
    """Of all indices, integers in [0, entries) of any shapes.

    ``entries``; ``usage``, the share seen at least once; ``perplexity``, e to the entropy in nats: as many entries,
    equally used, would say as much; ``bits``, that entropy per index in bits.
    """
    counts = torch.zeros(entries, dtype=torch.int64)
    for part in indices:
        counts += torch.bincount(part.flatten(), minlength=entries)
    if int(counts.sum()) == 0:
        raise ValueError("no codebook index was counted")
    use = {name: float(value) for name, value in use_of_codes(counts.double()).items()}
    return {"entries": entries, **use, "bits": math.log2(use["perplexity"])}

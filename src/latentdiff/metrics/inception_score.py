"""How sure a classifier is of each generated image, and how different its answers are."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.metrics.features.base import LOGITS, Features
from latentdiff.metrics.on_features import Naming, on_layer
from latentdiff.metrics.reference import Reference
from latentdiff.types import Rows


def inception_score(logits: Tensor) -> float:
    """exp(mean KL(p(y|x) | p(y))), from logits (N, classes): 1 to the number of classes."""
    log_p = logits.double().log_softmax(dim=1)
    p = log_p.exp()
    divergence = p.mul(log_p).sum(dim=1).mean() - torch.special.xlogy(p.mean(dim=0), p.mean(dim=0)).sum()
    return float(divergence.exp())


class InceptionScore:
    """Inception score (Salimans et al., arXiv:1606.03498): mean and standard deviation over ``splits`` equal parts of
    the images in the order of their indices. It grows with the number of images in a part.

    Args:
        splits: number of parts.
        layer: logits of a classifier.
    """

    needs_reference = False

    def __init__(self, *, splits: int = 10, layer: str = LOGITS):
        if splits < 1:
            raise InputError(f"the Inception score needs at least 1 split, got {splits}")
        self.splits, self.layer = splits, layer
        self.layers = (layer,)

    def __call__(self, rows: Rows, reference: Reference | None, naming: Naming) -> dict[str, float]:
        logits, bounds = rows.column(self.layer), [i * len(rows) // self.splits for i in range(self.splits + 1)]
        scores = [inception_score(logits[start:stop]) for start, stop in pairwise(bounds)]
        values = torch.tensor(scores, dtype=torch.float64)
        return dict(zip(self.names(naming), (float(values.mean()), float(values.std(correction=0)))))

    def names(self, naming: Naming) -> list[str]:
        name = on_layer("is", self.layer, LOGITS)
        return [naming(name), naming(f"{name}_sd")]

    def check(self, features: Features, count: int) -> None:
        if count < 2 * self.splits:
            raise InputError(
                f"an Inception score of {self.splits} splits needs at least {2 * self.splits} images, got {count}"
            )

    def describe(self) -> dict[str, object]:
        return {"layer": self.layer, "splits": self.splits}

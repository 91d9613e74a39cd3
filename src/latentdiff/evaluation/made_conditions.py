"""Conditions that no data are needed for, so that any number of images can be made."""

from __future__ import annotations

import torch

from latentdiff.types import Batch


class MadeConditions:
    """Engine ``Samples`` of a class-conditional model, each class as often as the others, or of an unconditional one.

    Args:
        classes: how many the model knows; None: it reads no class.
    """

    def __init__(self, *, classes: int | None):
        self.classes = classes

    def __call__(self, indices: range) -> Batch:
        label = None if self.classes is None else torch.tensor([i % self.classes for i in indices])
        return Batch(keys=[f"image {i}" for i in indices], label=label)

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        rule = "no condition" if self.classes is None else f"image i: class i mod {self.classes}"
        return {"from": "made", "rule": rule}

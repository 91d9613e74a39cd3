"""Do images of the embedded world show what was asked for? Read off by ``shapes.checker``, without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from latentdiff.metrics.embedded_world import check_scenes
from latentdiff.shapes import checker
from latentdiff.types import Batch, Column, Rows


class CaptionAccuracy:
    """Share of right attributes, apart for scenes of one and of two objects.

    ``shuffled`` is the control: the same images against each other's captions, that is the level of chance. The other
    control, real scenes that only went through stage one, is this metric on reconstructions.
    """

    def check(self, batch: Batch) -> None:
        """Raises InputError where the samples lack what is read of them."""
        check_scenes(batch, "caption accuracy")

    def measure(self, images: Tensor, batch: Batch) -> dict[str, Column]:
        """Images, uint8 (B, 3, H, W), made for ``batch.attributes`` (see ``shapes.scene.attributes``)."""
        self.check(batch)
        assert batch.attributes is not None
        return {
            "read": [checker.described(reading) for reading in checker.read(images)],
            "wanted": [checker.described(scene) for scene in batch.attributes],
        }

    def result(self, rows: Rows) -> dict[str, object]:
        """{"one_object": {attribute: share}, "two_objects": {...}, "shuffled": {the same two groups}}."""
        read, wanted = rows.column("read"), rows.column("wanted")
        return {**_accuracy(read, wanted), "shuffled": _accuracy(read, shuffled(wanted))}


def shuffled(attributes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each scene gets the attributes of another with as many objects: half of those scenes further on, in a circle.

    A scene that is alone with its number of objects is left with its own.
    """
    moved = list(attributes)
    for count in {len(scene["objects"]) for scene in attributes}:
        places = [i for i, scene in enumerate(attributes) if len(scene["objects"]) == count]
        for place, other in zip(places, np.roll(places, -max(1, len(places) // 2))):
            moved[place] = attributes[other]
    return moved


def _accuracy(readings: Sequence[Mapping[str, Any]], attributes: Sequence[Mapping[str, Any]]) -> dict[str, dict]:
    return checker.summarise(checker.score(readings, attributes))

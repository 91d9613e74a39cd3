"""Do images of the embedded world show the class that they were made for?"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.metrics.embedded_world import check_scenes, turned
from latentdiff.shapes import checker
from latentdiff.shapes.scene import SHAPES
from latentdiff.types import Batch, Column, Rows

MOST_OBJECTS = 2
"""Of a scene. Of more that are read the smallest are ignored: an image full of shapes shows no class."""


class LabelAccuracy:
    """Share of images in which an object of the class's shape is read, be it the first or the second object.

    The class of a scene is its first object's shape, and nothing in an image says which of two objects is the first.
    ``shuffled`` is the control, the same images against each other's classes, that is the level of chance: about 0.22
    on real scenes, 30 % of which have two objects.
    """

    def check(self, batch: Batch) -> None:
        """Raises InputError where the samples lack what is read of them."""
        check_scenes(batch, "label accuracy")
        if batch.label is None or bool(((batch.label < 0) | (batch.label >= len(SHAPES))).any()):
            raise InputError(
                f"label accuracy needs a class from 0 to {len(SHAPES) - 1} of every sample; use data=shapes"
            )

    def measure(self, images: Tensor, batch: Batch) -> dict[str, Column]:
        """Images, uint8 (B, 3, H, W), made for ``batch.label``, indices into ``shapes.scene.SHAPES``."""
        self.check(batch)
        assert batch.label is not None
        found = [[o.shape for o in reading.objects[:MOST_OBJECTS]] for reading in checker.read(images)]
        return {"found": found, "wanted": [SHAPES[int(label)] for label in batch.label]}

    def result(self, rows: Rows) -> dict[str, object]:
        """{"accuracy": share, "classes": {shape: of the images made for it}, "shuffled": {"accuracy"}}."""
        found, wanted = rows.column("found"), rows.column("wanted")
        right = _right(found, wanted)
        by_class = {shape: [r for r, one in zip(right, wanted) if one == shape] for shape in SHAPES}
        return {
            "accuracy": _mean(right),
            "classes": {shape: _mean(values) for shape, values in by_class.items() if values},
            "shuffled": {"accuracy": _mean(_right(found, turned(wanted)))},
        }


def _right(found: Sequence[Sequence[str]], wanted: Sequence[str]) -> list[bool]:
    return [shape in shapes for shapes, shape in zip(found, wanted)]


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)

"""Do images of the embedded world lie where the semantic map puts them?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from latentdiff.config.errors import InputError
from latentdiff.metrics.embedded_world import check_scenes, turned
from latentdiff.shapes import checker
from latentdiff.shapes.scene import SHAPES
from latentdiff.types import UNLABELLED, Batch, Column, Rows

CLASSES = ("background", *SHAPES)
"""Of ``shapes.renderer.segmentation``: the index is the value in the map."""


class SemanticIou:
    """Mean intersection over union of the map that is read off the images with the map they were made for.

    Both at the reader's 64x64 pixels; a given map of another size is taken there by its nearest pixels. Of each class
    the intersections and unions are summed over all images, then divided; the mean is over the classes whose union is
    not empty (the measure of PASCAL VOC, Everingham et al. 2010). Pixels that the given map leaves ``UNLABELLED`` do
    not count. ``shuffled`` is the control, the same images against each other's maps.

    Args:
        classes: name of each value of the given maps, ``background`` and the names of the world's shapes.

    Raises:
        InputError: ``classes`` leaves one of these out.
    """

    def __init__(self, *, classes: Sequence[str] = CLASSES):
        self.classes = tuple(classes)
        if missing := [name for name in CLASSES if name not in self.classes]:
            raise InputError(f"classes: expected the background and every shape, '{missing[0]}' is not in {classes}")

    def check(self, batch: Batch) -> None:
        """Raises InputError where the samples lack what is read of them."""
        check_scenes(batch, "semantic IoU")
        if batch.segmentation is None:
            raise InputError("semantic IoU needs the maps that the images were made for, the batch has none")

    def measure(self, images: Tensor, batch: Batch) -> dict[str, Column]:
        """Images, uint8 (B, 3, H, W), made for ``batch.segmentation`` -> both maps, uint8 (B, 64, 64)."""
        self.check(batch)
        assert batch.segmentation is not None
        size = (checker.SIDE,) * 2
        given = interpolate(batch.segmentation[:, None].float().cpu(), size=size, mode="nearest-exact")[:, 0].byte()
        if strange := set(given.unique().tolist()) - {*range(len(self.classes)), UNLABELLED}:
            raise InputError(
                f"semantic IoU: a map has the value {max(strange)}, but {len(self.classes)} classes are named; give "
                "all of them as the metric's 'classes'"
            )
        read = np.stack([self._map(reading) for reading in checker.read(images)])
        return {"read": torch.from_numpy(read), "given": given}

    def result(self, rows: Rows) -> dict[str, object]:
        """{"miou", "pixel_accuracy", "iou": {class: value}, "shuffled": {"miou", "pixel_accuracy"}}."""
        read, given = rows.column("read").numpy(), rows.column("given").numpy()
        control = self._compared(read, turned(given))
        return {**self._compared(read, given), "shuffled": {k: control[k] for k in ("miou", "pixel_accuracy")}}

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {"classes": list(self.classes)}

    def _map(self, reading: checker.Reading) -> np.ndarray:
        """uint8 (64, 64): the class of each pixel; where objects overlap, that of the smallest."""
        found = np.full((checker.SIDE, checker.SIDE), self.classes.index("background"), np.uint8)
        for o in reading.objects:
            found[o.mask] = self.classes.index(o.shape)
        return found

    def _compared(self, read: Sequence[np.ndarray], given: Sequence[np.ndarray]) -> dict[str, object]:
        count = len(self.classes)
        confusion = np.zeros((count, count), np.int64)
        for found, wanted in zip(read, given):
            known = wanted != UNLABELLED
            pairs = wanted[known].astype(np.int64) * count + found[known]
            confusion += np.bincount(pairs, minlength=count * count).reshape(count, count)
        both = np.diag(confusion)
        union = confusion.sum(0) + confusion.sum(1) - both
        iou = {name: both[i] / union[i] for i, name in enumerate(self.classes) if union[i]}
        if not iou:
            raise InputError("semantic IoU: no pixel of any given map has a class")
        values = {name: float(value) for name, value in iou.items()}
        return {
            "miou": float(np.mean(list(values.values()))),
            "pixel_accuracy": float(both.sum() / confusion.sum()),
            "iou": values,
        }

"""Does inpainting draw into the hole what the caption asks for?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import interpolate

from latentdiff.config.errors import InputError
from latentdiff.metrics.caption_accuracy import shuffled
from latentdiff.metrics.embedded_world import check_scenes
from latentdiff.shapes import checker
from latentdiff.shapes.renderer import coverage
from latentdiff.shapes.scene import Scene, from_attributes
from latentdiff.types import Batch, Column, Rows


class HoleAttributes:
    """Share of right attributes of the objects that the hole hides: the caption names them, the known pixels do not.

    An object is hidden where the hole covers at least the share ``hidden`` of its area. Of the objects that are read
    off an image those come into question that lie in the hole with at least half that share, first those that lie in
    it most; ``checker.score`` pairs them with the hidden ones. ``shuffled`` is the control: other scenes' hidden
    objects, as many of them.

    Args:
        hidden: in (0, 1].
    """

    def __init__(self, *, hidden: float = 0.75):
        if not 0 < hidden <= 1:
            raise InputError(f"hidden: expected a share above 0 and at most 1, got {hidden}")
        self.hidden = hidden

    def check(self, batch: Batch) -> None:
        """Raises InputError where the samples lack what is read of them."""
        check_scenes(batch, "the accuracy in the hole")
        if batch.mask is None:
            raise InputError("the accuracy in the hole needs the masks of the holes, the batch has none")

    def measure(self, images: Tensor, batch: Batch) -> dict[str, Column]:
        """Images, uint8 (B, 3, H, W), that were to continue ``batch.image`` where ``batch.mask`` is 1."""
        self.check(batch)
        assert batch.mask is not None
        assert batch.attributes is not None
        holes = batch.mask.cpu()
        small = interpolate(holes.float(), size=(checker.SIDE,) * 2, mode="nearest-exact")[:, 0].numpy() > 0
        return {
            "read": [self._inside(one, hole) for one, hole in zip(checker.read(images), small)],
            "wanted": [self._hidden(scene, hole) for scene, hole in zip(batch.attributes, holes[:, 0].numpy() > 0)],
        }

    def result(self, rows: Rows) -> dict[str, object]:
        """{attribute: share of the hidden objects, "objects": their number, "shuffled": {attribute: share}}.

        Only the number, 0, where no hole hides an object.
        """
        pairs = [(r, w) for r, w in zip(rows.column("read"), rows.column("wanted")) if w["objects"]]
        readings, wanted = [r for r, _ in pairs], [w for _, w in pairs]
        count = sum(len(w["objects"]) for w in wanted)
        if count == 0:
            return {"objects": 0}
        return {**_accuracy(readings, wanted), "objects": count, "shuffled": _accuracy(readings, shuffled(wanted))}

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {"hidden": self.hidden}

    def _hidden(self, attributes: Mapping[str, Any], hole: np.ndarray) -> dict[str, Any]:
        """The scene's hidden objects as ``checker.score`` takes what is wanted."""
        scene: Scene = from_attributes(attributes)
        asked = checker.described(attributes)["objects"]
        objects = []
        for o, one in zip(scene.objects, asked):
            area = coverage(o.shape, o.radius, o.rotation, o.centre, len(hole))
            if (area * hole).sum() >= self.hidden * area.sum():
                objects.append(one)
        return {"background": None, "objects": objects}

    def _inside(self, reading: checker.Reading, hole: np.ndarray) -> dict[str, Any]:
        """The read objects in the hole, in the same form."""
        shares = {id(o): hole[o.mask].mean() for o in reading.objects}
        inside = [o for o in reading.objects if shares[id(o)] >= self.hidden / 2]
        inside.sort(key=lambda o: -shares[id(o)])
        return checker.described(replace(reading, objects=tuple(inside)))


def _accuracy(readings: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over objects; ``checker.score`` gives means over an image's objects."""
    scores, weights = checker.score(readings, wanted), [len(w["objects"]) for w in wanted]
    return {
        name: float(np.average([score[name] for score in scores], weights=weights))
        for name in checker.OBJECT_ATTRIBUTES
    }

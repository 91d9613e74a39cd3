"""Fréchet distance of generated images to real ones."""

from __future__ import annotations

from dataclasses import replace

from latentdiff.config.errors import InputError
from latentdiff.metrics.features.base import POOL, SPATIAL, Features
from latentdiff.metrics.gaussian import FrechetStatistics, frechet_distance, frechet_distance_of
from latentdiff.metrics.on_features import Naming, on_layer
from latentdiff.metrics.reference import Reference, given
from latentdiff.types import Rows

FID_MINIMUM = 10_000
"""Fewer images than this, generated or real, are never called a FID: its bias falls with 1/N (2.1 x as large at 5,000
as at 10,000)."""
PUBLISHED = {POOL: "fid", SPATIAL: "sfid"}
"""Layer of the published Inception -> name of the distance on it; on others it has none."""


def frechet_name(naming: Naming, layer: str, suffix: str = "") -> str:
    """``fid``, ``sfid`` or what else a distance on this layer is called, with the suffix."""
    otherwise = on_layer("fd", layer) + suffix
    if layer not in PUBLISHED:
        return naming.by_features(otherwise)
    return naming(PUBLISHED[layer] + suffix, otherwise=otherwise, least=FID_MINIMUM)


class FrechetDistance:
    """Named after the features and the number of generated images, ``fd_randconv-v1_n1000``; ``fid_n50000`` for the
    published Inception with at least ``FID_MINIMUM`` images on both sides, ``rfid_n50000`` where they are
    reconstructions; on the layer of sFID ``sfid_n50000``.

    Args:
        layer: of the features.
        strict: True: only by its published name, other features or fewer images are an error.

    Raises:
        InputError: strict, on a layer without a published name.
    """

    needs_reference = True

    def __init__(self, *, layer: str = POOL, strict: bool = False):
        if strict and layer not in PUBLISHED:
            raise InputError(f"distances on the layer '{layer}' have no published name; leave out strict")
        self.layer, self.strict = layer, strict
        self.layers = (layer,)

    def __call__(self, rows: Rows, reference: Reference | None, naming: Naming) -> dict[str, float]:
        real = given(reference).moments(self.layer)
        self.check_reference(real.count)
        if len(rows) < len(real.mean):
            distance = frechet_distance_of(rows.column(self.layer), real)
        else:
            distance = frechet_distance(FrechetStatistics.of_blocks(rows.blocks(self.layer)), real)
        return dict(zip(self.names(replace(naming, real=real.count)), [distance]))

    def names(self, naming: Naming) -> list[str]:
        return [frechet_name(naming, self.layer)]

    def check(self, features: Features, count: int) -> None:
        if count < 2:
            raise InputError(f"num_images: a Fréchet distance needs at least 2 images, got {count}")
        if self.strict and not (features.published and count >= FID_MINIMUM):
            raise InputError(
                f"'{PUBLISHED[self.layer]}' is the name of a distance by the published Inception of {FID_MINIMUM} "
                f"images or more, this would be one by {features.name} of {count}; raise num_images, or leave out "
                "strict: it is then named after its features"
            )

    def check_reference(self, count: int | None) -> None:
        """Raises InputError where this is strict and the real images are too few for the published name."""
        if self.strict and count is not None and count < FID_MINIMUM:
            raise InputError(
                f"reference: '{PUBLISHED[self.layer]}' is the name of a distance to {FID_MINIMUM} real images or more, "
                f"these are {count}; give a file of more as reference, raise num_reference, or leave out strict: it is "
                "then named after its features"
            )

    def describe(self) -> dict[str, object]:
        return {"layer": self.layer, "covariance": "N - 1, float64"}

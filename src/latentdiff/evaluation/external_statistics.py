"""Reference files of other programs: moments of the published Inception, with or without the images themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentdiff import durable
from latentdiff.config.errors import InputError
from latentdiff.evaluation.given_images import IMAGES
from latentdiff.evaluation.npz_member import opened_npz
from latentdiff.evaluation.reference_file import NEED_FEATURES
from latentdiff.metrics.features.base import POOL, SPATIAL, Features
from latentdiff.metrics.gaussian import FrechetStatistics
from latentdiff.metrics.reference import Reference

MOMENTS = {POOL: ("mu", "sigma", 2048), SPATIAL: ("mu_s", "sigma_s", 2023)}
"""Layer -> names of mean and covariance, and the width. ADM's files have both layers, those of EDM and pytorch-fid the
first; ADM's have the images too, as ``arr_0``."""
ASYMMETRY = 1e-3
"""Of a covariance, relative to its largest number; files in float32 are not symmetric to the last digit."""


@dataclass(frozen=True)
class ExternalFile:
    """``moments`` by layer; they name no network, and no number of images. ``images``: the file has some."""

    path: Path
    moments: Mapping[str, FrechetStatistics]
    images: bool

    @property
    def resize_untold(self) -> bool:
        """Whether nobody knows how images were resized for its moments: with those of sFID they are ADM's, which
        resizes as the published FID does."""
        return bool(self.moments) and SPATIAL not in self.moments

    @classmethod
    def read(cls, path: str | Path) -> ExternalFile:
        """Raises InputError for another shape, for what is no plain .npz, and where there is neither."""
        path = Path(path)
        if path.suffix != ".npz":
            raise InputError(
                f"reference: '{path}' is no .npz file. Statistics in a pickle (.pkl, as EDM2 and StyleGAN publish "
                "them) can run any program and are not opened; make a reference with latentdiff reference"
            )
        if not path.is_file():
            raise InputError(f"reference: there is no file '{path}'; make one with latentdiff reference")
        with opened_npz(path) as arrays:
            moments = {layer: _gaussian(arrays, path, *names) for layer, names in MOMENTS.items() if names[0] in arrays}
            images = IMAGES in arrays
            if not moments and not images:
                raise InputError(
                    f"reference: '{path}' has the arrays {', '.join(arrays.files)}; expected a file of latentdiff "
                    f"reference, or mu and sigma, or images as {IMAGES}"
                )
        return cls(path, moments, images)

    def of(self, features: Features, images: Reference | None) -> ExternalReference:
        """As these features see it; ``images``: what they see in the file's images.

        Raises InputError for moments alone where the features are not those of the published FID.
        """
        if images is None and not features.published:
            raise InputError(
                f"reference: '{self.path}' has statistics of the published Inception, the metrics look with "
                f"{features.name}; choose metrics=inception with its published weights, or make a reference with "
                "latentdiff reference"
            )
        return ExternalReference(self, self.moments if features.published else {}, images)


class ExternalReference:
    """The ``metrics.reference.Reference`` of an ``ExternalFile``: the file's moments where it has the layer, else those
    of its images; features of its images."""

    def __init__(self, file: ExternalFile, moments: Mapping[str, FrechetStatistics], images: Reference | None):
        self._file, self._moments, self._images = file, moments, images
        self._sha256 = durable.sha256(file.path)
        self.count = None if moments or images is None else images.count

    def moments(self, layer: str) -> FrechetStatistics:
        if layer in self._moments:
            return self._moments[layer]
        return self._of_images(layer, f"has no moments of the layer '{layer}'").moments(layer)

    def features(self, layer: str) -> Tensor:
        return self._of_images(layer, f"has moments alone, {NEED_FEATURES}").features(layer)

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        about = {"from": "another program's file", "sha256": self._sha256, "moments": sorted(self._moments)}
        if self._moments and self._file.resize_untold:
            about["resize"] = "not told by the file"
        return about if self._images is None else {**about, "images": self._images.describe()}

    def _of_images(self, layer: str, lacking: str) -> Reference:
        if self._images is None:
            raise InputError(
                f"reference: '{self._file.path}' {lacking}; make a reference with latentdiff reference, or leave the "
                "measure out"
            )
        return self._images


def _gaussian(
    arrays: Mapping[str, np.ndarray], path: Path, mean: str, covariance: str, width: int
) -> FrechetStatistics:
    found = {name: arrays[name] for name in (mean, covariance) if name in arrays}
    for name, shape in ((mean, (width,)), (covariance, (width, width))):
        got = "none" if name not in found else f"{found[name].dtype} {found[name].shape}"
        if name not in found or found[name].shape != shape or found[name].dtype.kind != "f":
            raise InputError(f"reference: '{path}': expected '{name}' as floats {shape}, got {got}")
        if not np.isfinite(found[name]).all():
            raise InputError(f"reference: '{path}': '{name}' has numbers that are not finite")
    sigma = torch.from_numpy(found[covariance].astype(np.float64))
    if (sigma - sigma.T).abs().max() > ASYMMETRY * sigma.abs().max():
        raise InputError(f"reference: '{path}': '{covariance}' is not symmetric, so it is no covariance")
    return FrechetStatistics(torch.from_numpy(found[mean].astype(np.float64)), (sigma + sigma.T) / 2, None)

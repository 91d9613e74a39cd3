"""A reference in a file: what networks saw in real images, and which images these were, in one .npz without pickles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.durable import new_file
from latentdiff.evaluation.npz_member import opened_npz
from latentdiff.metrics.features.base import Features
from latentdiff.metrics.gaussian import FrechetStatistics
from latentdiff.metrics.reference import MeasuredReference
from latentdiff.types import Rows

RECORD = "record"
"""The JSON among the arrays. The others are called ``EXTRACTOR/LAYER/mean``, ``.../covariance``, ``.../features``."""
FORMAT = "latentdiff-reference-1"
NEED_FEATURES = "kernel distances, precision and recall, density and coverage compare single images' features"
INFORMATIVE = ("library", "prefix")
"""Keys of an extractor's description that need not be equal: what CLIP puts before captions changes no image's feature,
and a reference has no captions' features."""


@dataclass(frozen=True)
class Seen:
    """What a network saw in the reference's images: ``layers`` of ``rows``."""

    features: Features
    rows: Rows
    layers: Collection[str]


def save_reference(
    path: str | Path, record: Mapping[str, object], seen: Sequence[Seen], *, keep: int
) -> dict[str, object]:
    """Writes the file and returns its record; of one network the first entry of ``seen`` with a layer counts.

    Args:
        record: what the images are, JSON-ready.
        keep: images, spread evenly, whose features are kept, float32; 0: mean and covariance (float64) alone.

    Raises:
        InputError: there are fewer than two images.
    """
    arrays: dict[str, np.ndarray] = {}
    extractors: dict[str, dict] = {}
    for each in seen:
        if len(each.rows) < 2:
            raise InputError(f"num_images: a reference needs at least 2 images, got {len(each.rows)}")
        about = extractors.setdefault(each.features.name, {"describe": each.features.describe(), "layers": {}})
        for layer in each.layers:
            if layer in about["layers"]:
                continue
            about["layers"][layer] = each.features.layers[layer]
            place, moments = f"{each.features.name}/{layer}", MeasuredReference(each.rows).moments(layer)
            arrays[f"{place}/mean"], arrays[f"{place}/covariance"] = moments.mean.numpy(), moments.covariance.numpy()
            if keep:
                arrays[f"{place}/features"] = _spread(each.rows, layer, keep).numpy()
    complete = {"format": FORMAT, **record, "features": keep, "extractors": extractors}
    complete["sha256"] = _digest(complete, arrays)
    text = np.frombuffer(json.dumps(complete).encode(), dtype=np.uint8)
    with new_file(path) as staged, staged.open("wb") as file:
        np.savez(file, **{RECORD: text}, **arrays)
    return complete


class ReferenceFile:
    """What ``save_reference`` wrote. ``record``: what the images are.

    Raises:
        InputError: it is damaged or something else.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with opened_npz(path) as arrays:
            if RECORD not in arrays:
                raise InputError(f"'{path}' is no reference file of latentdiff; make one with latentdiff reference")
            self.record = _parsed(arrays[RECORD], self.path)
            if self.record.get("format") != FORMAT:
                raise InputError(
                    f"'{path}' has the format {self.record.get('format')!r}, expected {FORMAT!r}; make it anew"
                )
            self._names = [name for name in arrays.files if name != RECORD]
            if _digest(self.record, {name: arrays[name] for name in self._names}) != self.record.get("sha256"):
                raise InputError(
                    f"'{path}' is damaged: its content does not have the sha256 that it names; make it anew"
                )

    def read(self, name: str) -> Tensor | None:
        """The array of this name, None where there is none."""
        if name not in self._names:
            return None
        with opened_npz(self.path) as arrays:
            return torch.from_numpy(arrays[name])

    def of(self, features: Features) -> FileReference:
        """As these features see it.

        Raises InputError where the file has none of them, or of other weights.
        """
        extractors = self.record["extractors"]
        if features.name not in extractors:
            raise InputError(
                f"reference: '{self.path}' has features by {', '.join(extractors)}, the metrics look with "
                f"{features.name}; make one with latentdiff reference and these metrics"
            )
        made, now = (_lasting(each) for each in (extractors[features.name]["describe"], features.describe()))
        if differing := [key for key in {**made, **now} if made.get(key) != now.get(key)]:
            key = differing[0]
            raise InputError(
                f"reference: '{self.path}' was made by {features.name} with {key} {made.get(key)!r}, here it is "
                f"{now.get(key)!r}; make it anew, or use the same"
            )
        return FileReference(self, features.name)


class FileReference:
    """The ``metrics.reference.Reference`` of one network in a ``ReferenceFile``."""

    def __init__(self, file: ReferenceFile, extractor: str):
        self._file, self._extractor = file, extractor
        self.count: int = file.record["count"]
        self._read: dict[str, Tensor] = {}

    def moments(self, layer: str) -> FrechetStatistics:
        return FrechetStatistics(self._array(layer, "mean"), self._array(layer, "covariance"), self.count)

    def features(self, layer: str) -> Tensor:
        return self._array(layer, "features")

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        kept = {key: value for key, value in self._file.record.items() if key not in ("extractors", "made_with")}
        return {"from": "file", **kept}

    def _array(self, layer: str, what: str) -> Tensor:
        name = f"{self._extractor}/{layer}/{what}"
        if name not in self._read:
            found = self._file.read(name)
            if found is None:
                layers = self._file.record["extractors"][self._extractor]["layers"]
                lacking = (
                    f"holds no features, {NEED_FEATURES}; make it with features=10000"
                    if layer in layers
                    else f"holds of {self._extractor} {', '.join(layers)}, not '{layer}'; make it with these metrics"
                )
                raise InputError(f"reference: '{self._file.path}' {lacking}")
            self._read[name] = found
        return self._read[name]


def _spread(rows: Rows, layer: str, most: int) -> Tensor:
    """The layer of at most ``most`` images spread evenly, float32 (M, width), without all of them in memory."""
    wanted = torch.linspace(0, len(rows) - 1, min(most, len(rows)), dtype=torch.float64).long()
    found, start = [], 0
    for block in rows.blocks(layer):
        inside = wanted[(wanted >= start) & (wanted < start + len(block))]
        found.append(block[inside - start].float())
        start += len(block)
    return torch.cat(found)


def _digest(record: Mapping[str, object], arrays: Mapping[str, np.ndarray]) -> str:
    """Of all but itself."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in record.items() if k != "sha256"}, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _parsed(text: np.ndarray, path: Path) -> dict:
    try:
        record = json.loads(text.tobytes())
    except ValueError as error:
        raise InputError(f"'{path}' is damaged: its record is no JSON ({error}); make it anew") from error
    if not isinstance(record, dict):
        raise InputError(f"'{path}' is damaged: its record is no mapping; make it anew")
    return record


def _lasting(about: Mapping[str, object]) -> dict[str, object]:
    """As JSON gives it back."""
    return {key: value for key, value in json.loads(json.dumps(about)).items() if key not in INFORMATIVE}

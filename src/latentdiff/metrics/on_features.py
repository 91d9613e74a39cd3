"""One look of a network at each image, and everything that is measured on what it saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.metrics.features.base import POOL, EmbedsCaptions, Features
from latentdiff.metrics.reference import MeasuredReference, Reference
from latentdiff.types import Batch, Column, Rows


@dataclass(frozen=True)
class Naming:
    """How results on these features are called: short with the published FID's network, else after the network.

    ``count``: generated images. ``reconstructions``: they are reconstructions of the reference, told by an "r".
    ``real``: real images they are compared with, None where nobody has told. ``texts``: name of what embeds captions,
    None: ``features``.
    """

    features: str
    published: bool
    count: int
    reconstructions: bool = False
    real: int | None = None
    texts: str | None = None

    def __call__(self, name: str, *, otherwise: str | None = None, least: int = 0) -> str:
        """``name_n5000`` where the features are the published ones and there are at least ``least`` images, generated
        and real, else ``otherwise_<features>_n5000`` (``otherwise`` None: ``name``)."""
        if self.published and self.count >= least and (self.real is None or self.real >= least):
            return f"{self._prefix}{name}_n{self.count}"
        return self.by_features(otherwise or name)

    def by_features(self, name: str) -> str:
        """``name_<features>_n5000``, whatever the features."""
        return f"{self._prefix}{name}_{self.features}_n{self.count}"

    def by_texts(self, name: str) -> str:
        """The same for numbers that depend on captions."""
        return f"{self._prefix}{name}_{self.texts or self.features}_n{self.count}"

    @property
    def _prefix(self) -> str:
        return "r" if self.reconstructions else ""


def on_layer(name: str, layer: str, usual: str = POOL) -> str:
    """``name``, with the layer where it is not the one that the name stands for."""
    return name if layer == usual else f"{name}-{layer}"


class FeatureMeasure(Protocol):
    """Numbers from the features of a set of images.

    ``layers``: those it reads. ``needs_reference``: it compares with real images.
    """

    layers: Sequence[str]
    needs_reference: bool

    def __call__(self, rows: Rows, reference: Reference | None, naming: Naming) -> dict[str, float]: ...

    def names(self, naming: Naming) -> list[str]:
        """Of its numbers."""
        ...

    def check(self, features: Features, count: int) -> None:
        """Raises InputError where ``count`` images of these features cannot give this number."""
        ...

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        ...


@runtime_checkable
class ReadsSamples(Protocol):
    """A measure that not all samples can give."""

    def check_samples(self, batch: Batch) -> None:
        """Raises InputError where these samples do not have what it reads beside the images."""
        ...


@runtime_checkable
class LimitsReference(Protocol):
    """A measure that not all references can give."""

    def check_reference(self, count: int | None) -> None:
        """Raises InputError where ``count`` real images, None where nobody has told, cannot give this number."""
        ...


class OnFeatures:
    """A metric whose rows are features, taken once for all ``measures``.

    Args:
        features: see ``metrics.features``; moved to the images' device.
        measures: what is computed of them; by any names in a configuration, so that one can be changed or left out.
        reconstructions: the images are reconstructions of the reference's own: names begin with "r", as in rFID.

    Raises:
        InputError: a measure reads a layer that the features do not have.
    """

    def __init__(
        self,
        *,
        features: Features,
        measures: Mapping[str, FeatureMeasure] | Sequence[FeatureMeasure],
        reconstructions: bool = False,
    ):
        self.features, self.reconstructions = features, reconstructions
        self.measures = list(measures.values() if isinstance(measures, Mapping) else measures)
        for measure in self.measures:
            if missing := [layer for layer in measure.layers if layer not in features.layers]:
                raise InputError(
                    f"{type(measure).__name__} reads the layer '{missing[0]}', {features.name} has "
                    f"{', '.join(features.layers)}; choose other features or leave the measure out"
                )

    @property
    def needs_reference(self) -> bool:
        return any(measure.needs_reference for measure in self.measures)

    @property
    def layers(self) -> list[str]:
        """Those that the measures read."""
        return list(dict.fromkeys(layer for measure in self.measures for layer in measure.layers))

    @property
    def real_layers(self) -> list[str]:
        """Those that comparisons with real images read."""
        return list(dict.fromkeys(layer for each in self.measures if each.needs_reference for layer in each.layers))

    def check_count(self, count: int) -> None:
        """Raises InputError where ``count`` images cannot give a number asked for, or two would have one name."""
        for measure in self.measures:
            measure.check(self.features, count)
        names = self.names(count)
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"two measures would both give '{twice[0]}'; leave one of them out")

    def check_reference(self, count: int | None) -> None:
        """Raises InputError where ``count`` real images, None where nobody has told, cannot give a number."""
        for measure in self.measures:
            if isinstance(measure, LimitsReference):
                measure.check_reference(count)

    def check(self, batch: Batch) -> None:
        """Raises InputError where these samples do not have what a measure reads beside the images."""
        for measure in self.measures:
            if isinstance(measure, ReadsSamples):
                measure.check_samples(batch)

    def measure(self, images: Tensor, batch: Batch) -> Mapping[str, Column]:
        """A column per layer, float32 (B, width)."""
        return self.features.to(images.device)(images, batch, self.layers)

    def measure_real(self, images: Tensor, batch: Batch) -> Mapping[str, Column]:
        """The same of real images, without what no comparison reads."""
        return self.features.to(images.device)(images, batch, self.real_layers)

    def reference(self, rows: Rows) -> Reference:
        """Of the rows of ``measure_real``."""
        return MeasuredReference(rows)

    def result(self, rows: Rows, reference: Reference | None = None) -> dict[str, object]:
        """Raises InputError where a measure needs a reference and there is none."""
        if reference is None and self.needs_reference:
            raise InputError(f"{self.features.name}: these measures compare with real images, there is no reference")
        naming = self._naming(len(rows))
        found: dict[str, object] = {}
        for measure in self.measures:
            found |= measure(rows, reference if measure.needs_reference else None, naming)
        return found

    def names(self, count: int) -> list[str]:
        """Of its numbers, for ``count`` images and enough real ones."""
        return [name for measure in self.measures for name in measure.names(self._naming(count))]

    def of_reconstructions(self) -> OnFeatures:
        """The same for images that are the reference's own reconstructions."""
        return OnFeatures(features=self.features, measures=self.measures, reconstructions=True)

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        about = [{"name": type(measure).__name__, **measure.describe()} for measure in self.measures]
        return {"features": self.features.name, **self.features.describe(), "measures": about}

    def _naming(self, count: int) -> Naming:
        texts = self.features.text_name if isinstance(self.features, EmbedsCaptions) else None
        return Naming(self.features.name, self.features.published, count, self.reconstructions, texts=texts)


def check_distinct(metrics: Mapping[str, object], count: int) -> None:
    """Raises InputError where two metrics on features would give one number twice, for ``count`` images."""
    givers: dict[str, str] = {}
    for own, metric in metrics.items():
        for name in metric.names(count) if isinstance(metric, OnFeatures) else ():
            if (other := givers.setdefault(name, own)) != own:
                raise InputError(
                    f"metrics: '{other}' and '{own}' would both give '{name}', by one network that looks twice at each "
                    f"image; leave one of the two out, or its measure: ~metrics.{own}.measures.NAME"
                )

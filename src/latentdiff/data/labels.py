"""The class of a sample: where it stands, and which classes there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentdiff.config.errors import InputError
from latentdiff.config.faults import did_you_mean
from latentdiff.data.decode import BrokenSampleError

NO_LABEL = -1


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Reads labels: class indices 0 to ``classes`` - 1, ``NO_LABEL`` where a sample has none.

    Raises InputError for fewer than one class, for a class named twice, and for more names than ``classes``.
    """

    classes: int | None = None
    """How many there are; None: as many as ``names``, without names any."""
    entry: str | None = None
    """Entry of the ``.json`` that holds the label; None: the ``.cls`` holds it."""
    names: Sequence[str] | None = None
    """The classes' names in their order, for labels that are names."""
    required: bool = False

    def __post_init__(self) -> None:
        if self.classes is not None and self.classes < 1:
            raise InputError(f"data.module.classes: expected at least 1, got {self.classes}")
        if self.names is not None:
            repeated = sorted({name for name in self.names if self.names.count(name) > 1})
            if repeated:
                raise InputError(f"data.module.class_names: '{repeated[0]}' is named twice; name every class once")
            if self.classes is not None and self.classes < len(self.names):
                raise InputError(
                    f"data.module.class_names has {len(self.names)} names, more than the {self.classes} classes; "
                    "change one of them"
                )

    @property
    def count(self) -> int | None:
        return len(self.names) if self.classes is None and self.names is not None else self.classes

    @property
    def place(self) -> str:
        """Where a label stands, for messages."""
        return ".cls" if self.entry is None else f"'{self.entry}' in .json"

    def of(self, data: bytes | None, attributes: dict, where: str) -> int:
        """The label of the sample with this ``.cls`` and ``.json``; ``where`` names it.

        Raises InputError for an unknown class and for a required label that is missing; BrokenSampleError for one that
        is no whole number, where there are no names to look it up in.
        """
        value = self._stored(data, attributes)
        label = NO_LABEL if value is None else self._index(value, where)
        if label == NO_LABEL:
            if self.required:
                raise InputError(
                    f"sample {where} has no label ({self.place}); add it, or set data.module.require_labels=false "
                    "where the model is not conditioned on it"
                )
        elif label < 0 or (self.count is not None and label >= self.count):
            known = f"0 to {self.count - 1}" if self.count is not None else "0 or more"
            raise InputError(
                f"sample {where} has the unknown class {label} ({self.place}); expected {known}; mend the label or "
                "set the number of classes"
            )
        return label

    def _stored(self, data: bytes | None, attributes: dict) -> str | int | None:
        if self.entry is None:
            return data.decode("utf-8", "replace").strip() if data else None
        value = attributes.get(self.entry)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        if isinstance(value, str):
            return value.strip()
        raise BrokenSampleError(f"its label ({self.place}) is neither a whole number nor a name but {repr(value)[:40]}")

    def _index(self, value: str | int, where: str) -> int:
        """A name is looked up first, so that names may be digits."""
        if isinstance(value, int):
            return value
        if self.names is not None and value in self.names:
            return self.names.index(value)
        try:
            return int(value)
        except ValueError as error:
            if self.names is not None:
                near = did_you_mean(value, self.names)
                raise InputError(
                    f"sample {where} has the unknown class '{value[:40]}' ({self.place}); "
                    f"data.module.class_names does not list it{near}"
                ) from error
            raise BrokenSampleError(
                f"its label ({self.place}) is not a whole number but {value[:20]!r}; names need data.module.class_names"
            ) from error

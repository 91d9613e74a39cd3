"""What a source of images gives, and what becomes of a row that gives none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from latentdiff.data.segmentation import MAP_EXTENSION


@dataclass(frozen=True)
class Raw:
    """An image and what belongs to it, as the source holds it."""

    image: bytes
    captions: tuple[str, ...] = ()
    """Its wordings, the main one first; none of them empty."""
    values: Mapping[str, object] = field(default_factory=dict)
    """Further entries of the ``.json``."""
    label: str | int | None = None
    map: bytes | None = None
    """Its ``.seg.png``."""


class LeftOutError(Exception):
    """A row gives no sample: ``what`` is the kind of reason (for counting), ``why`` the reason."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what, why)
        self.what = what
        self.why = why


class Row(Protocol):
    """One image of a source, small until it is loaded; it goes to a worker process and is loaded there."""

    name: str
    """For messages and for 'source' in the ``.json``: a path relative to the source, or 'FILE row 7'."""

    def load(self) -> Raw:
        """Raises LeftOutError, OSError or BrokenSampleError where the row gives no sample."""


class ImageSource(Protocol):
    """An ordered set of rows, each of which becomes one sample or is left out."""

    classes: Sequence[str] | None
    """Names of the classes in the order of their labels, where the source knows them."""

    def __len__(self) -> int: ...

    def rows(self, start: int) -> Iterator[Row]:
        """From row ``start`` on, always the same in the same order."""

    def identity(self) -> dict[str, object]:
        """Plain values that change when the rows do; an interrupted making goes on only where they are the same."""


@dataclass(frozen=True)
class UnusableRow:
    """A row of which the source itself knows that it gives no sample."""

    name: str
    what: str
    why: str

    def load(self) -> Raw:
        raise LeftOutError(self.what, self.why)


def read_image_file(path: Path) -> tuple[bytes, bytes | None]:
    """The file's bytes and those of the ``.seg.png`` beside it. LeftOutError where there is no such file."""
    if not path.is_file():
        raise LeftOutError("missing file", f"there is no file {path}")
    beside = path.with_suffix(f".{MAP_EXTENSION}")
    return path.read_bytes(), beside.read_bytes() if beside.is_file() else None


def stamp(path: Path) -> list[object]:
    """[path, bytes, time of change in ns]: differs when the file has been written again."""
    stat = path.stat()
    return [str(path), stat.st_size, stat.st_mtime_ns]

"""Which columns of a table are image, caption and class, and what stands in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from latentdiff.config.errors import InputError
from latentdiff.data.making.source import LeftOutError, Raw, Row, UnusableRow, read_image_file

_IMAGES = ("image", "image_path", "file_name", "filename", "path")
_CAPTIONS = ("caption", "captions", "text", "prompt")


@dataclass(frozen=True)
class Columns:
    """Names of columns. None: the first usual name that there is (``image``, ``image_path``, ``file_name``,
    ``filename``, ``path``; ``caption``, ``captions``, ``text``, ``prompt``). An empty ``caption``: there are none.
    """

    image: str | None = None
    caption: str | None = None
    label: str | None = None

    def among(self, present: Sequence[str], where: str) -> Columns:
        """With the names found. InputError, naming the columns of ``where``, where one is missing."""
        image = self.image if self.image is not None else _first(_IMAGES, present)
        caption = self.caption if self.caption is not None else _first(_CAPTIONS, present)
        if caption is None and self.label is not None:
            caption = ""
        for what, name in (("image", image), ("caption", caption), ("label", self.label)):
            if name is None and what != "label":
                other = " (an empty name: there are no captions)" if what == "caption" else ""
                raise InputError(
                    f"{where} has no usual {what} column; its columns are {_listed(present)}; name one with "
                    f"--{what}-column{other}"
                )
            if name and name not in present:
                raise InputError(f"{where} has no column '{name}' ({what}); its columns are {_listed(present)}")
        return replace(self, image=image, caption=caption)

    def row(self, name: str, record: Mapping[str, object], folder: Path) -> Row:
        """The row of a record. Its image cell holds the path of a file (relative to ``folder``), the file's bytes, or
        both as HuggingFace stores them, ``{"bytes": ..., "path": ...}``."""
        try:
            captions = captions_in(record.get(self.caption)) if self.caption else ()
            label = label_of(record.get(self.label)) if self.label else None
            image = record.get(self.image)
            if isinstance(image, Mapping):
                image = image.get("bytes") or image.get("path")
            if not isinstance(image, (bytes, str)) or not image:
                raise LeftOutError("bad row", f"the column '{self.image}' holds neither a path nor an image file")
        except LeftOutError as left:
            return UnusableRow(name, left.what, left.why)
        used = {self.image, self.caption, self.label}
        values = {key: value for key, value in record.items() if key not in used and value is not None}
        return TableRow(name, folder, image, captions, {k: v for k, v in values.items() if _is_plain(v)}, label)


@dataclass(frozen=True)
class TableRow:
    """A row whose captions are known already."""

    name: str
    folder: Path
    image: bytes | str
    """The file itself, or its path, relative to ``folder``."""
    captions: tuple[str, ...]
    values: Mapping[str, object]
    label: int | None = None

    def load(self) -> Raw:
        if isinstance(self.image, bytes):
            return Raw(self.image, self.captions, self.values, self.label)
        image, map_data = read_image_file(self.folder / self.image)
        return Raw(image, self.captions, self.values, self.label, map_data)


def captions_in(cell: object) -> tuple[str, ...]:
    """A caption or a list of them, without empty ones. LeftOutError for anything else."""
    several = list(cell) if isinstance(cell, (list, tuple)) else [cell]
    several = [caption for caption in several if caption is not None]
    if wrong := [caption for caption in several if not isinstance(caption, str)]:
        raise LeftOutError("bad row", f"the caption is no text but {type(wrong[0]).__name__}")
    return tuple(caption.strip() for caption in several if caption.strip())


def label_of(cell: object) -> int | None:
    """A class number of at least 0, 3.0 for 3; None for an empty cell and -1. LeftOutError for anything else."""
    if cell is None or cell == "":
        return None
    try:
        label = float(str(cell))
    except ValueError:
        label = math.nan
    if not label.is_integer() or label < -1:
        raise LeftOutError("bad row", f"the class '{cell}' is no whole number of at least 0")
    return None if label == -1 else int(label)


def _first(usual: Sequence[str], present: Sequence[str]) -> str | None:
    return next((name for name in usual if name in present), None)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "(none)"


def _is_plain(value: object) -> bool:
    """Whether JSON holds it."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (str, int))

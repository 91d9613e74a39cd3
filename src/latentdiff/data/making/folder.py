"""A folder of images with their captions, classes and maps in files beside them, or classes as folders."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from latentdiff.config.errors import InputError
from latentdiff.data.making.source import LeftOutError, Raw, Row, UnusableRow, read_image_file, stamp
from latentdiff.data.sample import captions_of, parsed_json
from latentdiff.data.segmentation import MAP_EXTENSION
from latentdiff.data.shard_table import IMAGE_EXTENSIONS

_BESIDE = ("txt", "json", "cls", MAP_EXTENSION)
_OTHER_IMAGES = ("avif", "bmp", "gif", "heic", "jfif", "jp2", "jxl", "tif", "tiff")


class FolderSource:
    """Every jpg, jpeg, png and webp below ``folder``, sorted by path; links to folders are followed, hidden files and
    folders passed over.

    Captions come from the ``.txt`` and the ``.json`` beside the image as training reads them (``sample.captions_of``),
    the class from the ``.cls``; all of the ``.json`` is kept. With ``class_folders`` the class is the first folder on
    the way to the image: the number of its name among all of them, sorted. Maps that belong to no image, links to no
    file and images of formats that are not read are rows too, which are left out.

    Raises InputError where the folder is missing or without images, or a folder in it cannot be listed.
    """

    def __init__(self, folder: str | Path, *, class_folders: bool = False) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{folder} is not a folder; expected one with images")
        files = sorted(_visible_files(self.folder))
        maps = [path for path in files if _is_map(path)]
        images = [path for path in files if _extension(path) in IMAGE_EXTENSIONS and not _is_map(path)]
        self._images = [path for path in images if (self.folder / path).is_file()]
        if not self._images:
            expected = " ".join(f".{extension}" for extension in IMAGE_EXTENSIONS)
            raise InputError(f"{folder} holds no images; expected {expected} files")
        owned = {path.with_suffix(f".{MAP_EXTENSION}") for path in self._images}
        lone = f"no image goes with it: expected one named alike ('a.{MAP_EXTENSION}' goes with 'a.jpg')"
        unread = f"files of this format are not read; expected {' '.join(IMAGE_EXTENSIONS)}"
        self._unusable = [UnusableRow(str(path), "map without an image", lone) for path in maps if path not in owned]
        self._unusable += [UnusableRow(str(p), "unreadable", unread) for p in files if _extension(p) in _OTHER_IMAGES]
        lost = "no regular file, or a link to none"
        self._unusable += [UnusableRow(str(p), "missing file", lost) for p in sorted(set(images) - set(self._images))]
        self.classes = _classes(self.folder) if class_folders else None

    def __len__(self) -> int:
        return len(self._images) + len(self._unusable)

    def rows(self, start: int) -> Iterator[Row]:
        labels = None if self.classes is None else {name: i for i, name in enumerate(self.classes)}
        for path in self._images[start:]:
            yield _ImageRow(str(path), self.folder, labels)
        yield from self._unusable[max(0, start - len(self._images)) :]

    def identity(self) -> dict[str, object]:
        digest = hashlib.sha256()
        files = set(_visible_files(self.folder))
        for path in self._images:
            beside = (path.with_suffix(f".{extension}") for extension in _BESIDE)
            for file in (self.folder / path, *(self.folder / file for file in beside if file in files)):
                if file.is_file():
                    digest.update(json.dumps(stamp(file)).encode())
        return {
            "folder": str(self.folder.resolve()),
            "classes": self.classes,
            "rows": len(self),
            "images": digest.hexdigest(),
        }


@dataclass(frozen=True)
class _ImageRow:
    name: str
    folder: Path
    labels: Mapping[str, int] | None

    def load(self) -> Raw:
        path = self.folder / self.name
        image, map_data = read_image_file(path)
        values = parsed_json(_bytes(path.with_suffix(".json")))
        captions = tuple(captions_of(_bytes(path.with_suffix(".txt")), values))
        return Raw(image, captions, values, self._label(path), map_data)

    def _label(self, path: Path) -> str | int | None:
        if self.labels is None:
            beside = path.with_suffix(".cls")
            return (beside.read_text(encoding="utf-8", errors="replace").strip() or None) if beside.is_file() else None
        label = self.labels.get(Path(self.name).parts[0])
        if label is None:
            raise LeftOutError("no class", "lies in no class folder")
        return label


def _extension(path: Path) -> str:
    return path.suffix.lower().lstrip(".")


def _is_map(path: Path) -> bool:
    return path.name.lower().endswith(f".{MAP_EXTENSION}")


def _visible_files(folder: Path) -> Iterator[Path]:
    """Relative to ``folder``. InputError where a folder cannot be listed.

    Links to folders are followed, but for one to a folder on the way to it, which would lead in a circle.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be listed ({error.strerror}); check its permissions") from error

    above = {str(folder): [os.path.realpath(folder)]}
    for here, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        way = above.pop(here)
        places = {name: os.path.realpath(os.path.join(here, name)) for name in folders if not name.startswith(".")}
        folders[:] = [name for name, place in places.items() if place not in way]
        above |= {os.path.join(here, name): [*way, places[name]] for name in folders}
        inside = Path(os.path.relpath(here, folder))
        yield from (inside / name for name in files if not name.startswith("."))


def _classes(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise InputError(f"{folder} holds no folders; with classes as folders each class has one, named by it")
    return names


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None

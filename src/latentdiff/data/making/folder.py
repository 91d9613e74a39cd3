"""A folder of images with their captions, classes and maps in files beside them, or classes as folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from latentdiff.config.errors import InputError
from latentdiff.data.decode import BrokenSampleError
from latentdiff.data.making.source import LeftOutError, Raw, Row, UnusableRow, read_image_file, stamp
from latentdiff.data.segmentation import MAP_EXTENSION
from latentdiff.data.shard_table import IMAGE_EXTENSIONS

_OTHER_IMAGES = ("avif", "bmp", "gif", "heic", "jfif", "jp2", "jxl", "tif", "tiff")


class FolderSource:
    """Every jpg, jpeg, png and webp below ``folder``, sorted by path; hidden files and folders are passed over.

    Captions come from the ``.txt`` beside the image, else from 'captions' or 'caption' of the ``.json`` beside it, all
    of which is kept; the class from the ``.cls``. With ``class_folders`` the class is the first folder on the way to
    the image: the number of its name among all of them, sorted. Maps that belong to no image and images of formats
    that are not read are rows too, which are left out.

    Raises InputError where the folder is missing or without images.
    """

    def __init__(self, folder: str | Path, *, class_folders: bool = False) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{folder} is not a folder; expected one with images")
        visible = sorted(path.relative_to(self.folder) for path in self.folder.rglob("*"))
        visible = [path for path in visible if not any(part.startswith(".") for part in path.parts)]
        maps = [path for path in visible if _is_map(path)]
        images = (path for path in visible if _extension(path) in IMAGE_EXTENSIONS and not _is_map(path))
        self._images = [path for path in images if (self.folder / path).is_file()]
        if not self._images:
            expected = " ".join(f".{extension}" for extension in IMAGE_EXTENSIONS)
            raise InputError(f"{folder} holds no images; expected {expected} files")
        owned = {path.with_suffix(f".{MAP_EXTENSION}") for path in self._images}
        lone = f"no image goes with it: expected one named alike ('a.{MAP_EXTENSION}' goes with 'a.jpg')"
        unread = f"files of this format are not read; expected {' '.join(IMAGE_EXTENSIONS)}"
        self._unusable = [UnusableRow(str(path), "map without an image", lone) for path in maps if path not in owned]
        self._unusable += [UnusableRow(str(p), "unreadable", unread) for p in visible if _extension(p) in _OTHER_IMAGES]
        self.classes = _classes(self.folder, visible) if class_folders else None

    def __len__(self) -> int:
        return len(self._images) + len(self._unusable)

    def rows(self, start: int) -> Iterator[Row]:
        labels = None if self.classes is None else {name: i for i, name in enumerate(self.classes)}
        for path in self._images[start:]:
            yield _ImageRow(str(path), self.folder, labels)
        yield from self._unusable[max(0, start - len(self._images)) :]

    def identity(self) -> dict[str, object]:
        digest = hashlib.sha256()
        for path in self._images:
            digest.update(json.dumps(stamp(self.folder / path)).encode())
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
        values = _values(path.with_suffix(".json"))
        return Raw(image, _captions(path.with_suffix(".txt"), values), values, self._label(path), map_data)

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


def _classes(folder: Path, visible: list[Path]) -> list[str]:
    names = [path.name for path in visible if len(path.parts) == 1 and (folder / path).is_dir()]
    if not names:
        raise InputError(f"{folder} holds no folders; with classes as folders each class has one, named by it")
    return names


def _values(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BrokenSampleError(f"the .json beside it cannot be parsed ({error})") from error
    if not isinstance(values, dict):
        raise BrokenSampleError("the .json beside it is not an object")
    return values


def _captions(text: Path, values: dict) -> tuple[str, ...]:
    several = values.get("captions")
    if text.is_file():
        found = [text.read_text(encoding="utf-8-sig", errors="replace")]
    else:
        found = several if isinstance(several, list) and several else [values.get("caption")]
    return tuple(caption.strip() for caption in found if isinstance(caption, str) and caption.strip())

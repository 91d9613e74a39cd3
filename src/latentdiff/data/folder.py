"""A folder of captioned images to shards."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from latentdiff.config.errors import InputError
from latentdiff.data.conditions import nearest
from latentdiff.data.decode import BrokenSampleError, decode_map, decode_rgb
from latentdiff.data.segmentation import MAP_EXTENSION
from latentdiff.data.shard_set import IMAGE_EXTENSIONS
from latentdiff.data.shards import write_shards

_LABEL_SUFFIX = ".cls"
_JPEG_QUALITY = 95


@dataclass
class FolderSummary:
    """What became of a folder's images: ``written + len(unreadable)`` is their number."""

    written: int = 0
    shards: int = 0
    bytes: int = 0
    without_caption: list[str] = field(default_factory=list)
    """Images written without a caption, relative to the folder."""
    unreadable: list[str] = field(default_factory=list)
    """Images left out, relative to the folder, each with the reason."""
    lone_maps: list[str] = field(default_factory=list)
    """Maps that belong to no image ('a.seg.png' goes with 'a.jpg', in small letters), relative to the folder."""


def make_shards(
    folder: str | Path,
    dest: str | Path,
    *,
    image_size: int | None = None,
    samples_per_shard: int = 1000,
    max_pixels: int = 64_000_000,
    progress: Callable[[int], None] | None = None,
) -> FolderSummary:
    """Writes every jpg, jpeg, png and webp below ``folder``, sorted by path, to shards in ``dest``.

    Captions come from the ``.txt`` beside the image, else from 'caption' or 'captions' in the ``.json`` beside it; a
    ``.cls``, a ``.seg.png`` and all of the ``.json`` are kept. Files are stored as they are; with ``image_size`` given,
    images whose short side is larger are reduced to it and stored as JPEG of quality 95, and their maps with them by
    nearest neighbour. An image with a map of another size is left out. ``dest`` appears at the end, complete.

    Raises InputError where the folder is missing or without images, none is readable, or ``dest`` is not empty.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected one with images and a .txt beside each")
    images = find_images(folder)
    if not images:
        raise InputError(f"{folder} holds no images; expected {' '.join('.' + e for e in IMAGE_EXTENSIONS)} files")
    if Path(dest).resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{dest} lies inside {folder}; name a destination outside of it")
    summary = FolderSummary()
    samples = _samples(folder, images, image_size, max_pixels, summary)
    try:
        infos = write_shards(samples, dest, samples_per_shard, progress)
    except InputError as error:
        if len(summary.unreadable) == len(images):
            raise InputError(
                f"none of the {len(images)} images in {folder} is readable, first {summary.unreadable[0]}"
            ) from error
        raise
    summary.written = sum(info.samples for info in infos)
    summary.shards = len(infos)
    summary.bytes = sum(info.bytes for info in infos)
    read = {path.with_suffix(f".{MAP_EXTENSION}") for path in images}
    maps = (path for path in folder.rglob("*") if path.name.lower().endswith(f".{MAP_EXTENSION}"))
    summary.lone_maps = sorted(str(path.relative_to(folder)) for path in maps if path not in read)
    return summary


def find_images(folder: Path) -> list[Path]:
    """All images below the folder, sorted by their path in it; without hidden files and folders and without maps."""
    found = (path for path in folder.rglob("*") if path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS)
    images = (path for path in found if path.is_file() and not path.name.lower().endswith(f".{MAP_EXTENSION}"))
    relative = ((path.relative_to(folder), path) for path in images)
    return [path for inner, path in sorted(relative) if not any(part.startswith(".") for part in inner.parts)]


@dataclass
class _Picture:
    """An image and its segmentation map, as stored and decoded."""

    extension: str
    data: bytes
    pixels: np.ndarray
    map_data: bytes | None = None
    map_values: np.ndarray | None = None

    @classmethod
    def read(cls, path: Path, max_pixels: int) -> _Picture:
        """Raises BrokenSampleError where the image or its map cannot be used."""
        data = path.read_bytes()
        picture = cls(path.suffix.lower().lstrip("."), data, decode_rgb(data, max_pixels))
        beside = path.with_suffix(f".{MAP_EXTENSION}")
        if beside.is_file():
            picture.map_data = beside.read_bytes()
            try:
                picture.map_values = decode_map(picture.map_data, *picture.pixels.shape[:2])
            except InputError as error:
                raise BrokenSampleError(f"the .{MAP_EXTENSION} beside it {error}") from error
        return picture

    def reduced(self, image_size: int | None) -> _Picture:
        """The short side at most ``image_size``; the picture itself where it is already, or for None."""
        if image_size is None or min(self.pixels.shape[:2]) <= image_size:
            return self
        data, pixels = _reduced(self.pixels, image_size)
        if self.map_values is None:
            return _Picture("jpg", data, pixels)
        rows, columns = (nearest(*lengths) for lengths in zip(self.map_values.shape, pixels.shape))
        return _Picture("jpg", data, pixels, _png(self.map_values[rows][:, columns]))


def _samples(
    folder: Path, images: list[Path], image_size: int | None, max_pixels: int, summary: FolderSummary
) -> Iterator[dict]:
    for path in images:
        name = str(path.relative_to(folder))
        try:
            picture = _Picture.read(path, max_pixels)
            values = _values(path)
        except (BrokenSampleError, OSError) as error:
            summary.unreadable.append(f"{name}: {error}")
            continue
        text = _text(path, values)
        if not text:
            summary.without_caption.append(name)
        yield _sample(path, picture.reduced(image_size), values, text, name)


def _sample(path: Path, picture: _Picture, values: dict, text: str, name: str) -> dict:
    sample: dict = {picture.extension: picture.data}
    if text:
        sample["txt"] = text
        values = {"caption": text, **values}
    height, width, _ = picture.pixels.shape
    sample["json"] = {**values, "width": width, "height": height, "source": name}
    label = path.with_suffix(_LABEL_SUFFIX)
    if label.is_file():
        sample["cls"] = label.read_text().strip()
    if picture.map_data is not None:
        sample[MAP_EXTENSION] = picture.map_data
    return sample


def _values(path: Path) -> dict:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        values = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BrokenSampleError(f"the .json beside it cannot be parsed ({error})") from error
    if not isinstance(values, dict):
        raise BrokenSampleError("the .json beside it is not an object")
    return values


def _text(path: Path, values: dict) -> str:
    beside = path.with_suffix(".txt")
    if beside.is_file():
        return beside.read_text(encoding="utf-8-sig", errors="replace").strip()
    several = values.get("captions")
    first = several[0] if isinstance(several, list) and several else values.get("caption")
    return first.strip() if isinstance(first, str) else ""


def _reduced(pixels: np.ndarray, image_size: int) -> tuple[bytes, np.ndarray]:
    height, width, _ = pixels.shape
    scale = image_size / min(height, width)
    size = (max(image_size, round(width * scale)), max(image_size, round(height * scale)))
    image = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return file.getvalue(), np.asarray(image)


def _png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, format="PNG")
    return file.getvalue()

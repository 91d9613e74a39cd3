"""Images made elsewhere: a folder of files, or the array of an .npz in ADM's format; and which of them are measured."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.data.decode import DECODE_ERRORS, BrokenSampleError, decode_rgb
from latentdiff.diffusion.noise import keyed_generator
from latentdiff.evaluation.npz_member import NpzMember, opened_npz
from latentdiff.evaluation.prompts import PromptFile
from latentdiff.types import Batch

IMAGES = "arr_0"
"""The array of ADM's format: uint8 (N, H, W, 3)."""
EXTENSIONS = (".png", ".webp", ".jpg", ".jpeg")
RULE = "drawn without replacement from the seed, in the order of the set"
"""Which of a larger set's images are measured."""


class ImageSet(Protocol):
    """uint8 images of one size, by number.

    ``size``: (H, W) in pixels. ``names``: one per image, None: numbers. ``container``: what they are stored in.
    """

    size: tuple[int, int]
    container: str
    names: Sequence[str] | None

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Tensor:
        """Ascending indices -> uint8 (n, 3, H, W)."""
        ...

    def describe(self) -> dict[str, object]:
        """What numbers depend on beside the pixels."""
        ...

    def identity(self) -> dict[str, object]:
        """Which files these are: ``listing`` is of names and sizes, ``stamp`` differs when they are written again."""
        ...


class ImageFolder:
    """Every PNG and WebP file below ``folder``, sorted by its path there; hidden files are passed over.

    Args:
        lossy: also take JPEG and lossy WebP, whose artefacts change the numbers.

    Raises:
        InputError: there is none, one cannot be read, sizes differ, or an image is lossy.
    """

    def __init__(self, folder: str | Path, *, lossy: bool = False):
        self.folder = Path(folder)
        self.names = sorted(
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
        )
        if not self.names:
            raise InputError(f"images: '{folder}' holds no image; expected {', '.join(EXTENSIONS[:2])} files")
        heads = [_head(self.folder / name) for name in self.names]
        self.lossy = sum(is_lossy for _, is_lossy in heads)
        if self.lossy and not lossy:
            first = self.names[[is_lossy for _, is_lossy in heads].index(True)]
            raise InputError(
                f"images: {self.lossy} of {len(heads)} files in '{folder}' are JPEG or lossy WebP, '{first}' first, "
                "whose artefacts change the numbers; save samples as PNG, or give lossy=true, which the card tells"
            )
        self.container = "+".join(sorted({Path(name).suffix.lower().lstrip(".") for name in self.names}))
        self.size = heads[0][0]
        for name, (size, _) in zip(self.names, heads):
            if size != self.size:
                raise InputError(
                    f"images: '{name}' has {size[0]}x{size[1]} pixels, '{self.names[0]}' has "
                    f"{self.size[0]}x{self.size[1]}; all must be of one size"
                )

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([self._decoded(self.names[i]) for i in indices])

    def describe(self) -> dict[str, object]:
        return {"lossy": self.lossy > 0, "transparency": "over white"}

    def identity(self) -> dict[str, object]:
        files = {name: self.folder / name for name in self.names}
        return {"images": str(self.folder), "available": len(self), "lossy": self.lossy, **_marks(files)}

    def _decoded(self, name: str) -> Tensor:
        try:
            pixels = decode_rgb((self.folder / name).read_bytes())
        except (BrokenSampleError, OSError) as error:
            raise InputError(f"images: '{self.folder / name}': {error}") from error
        if pixels.shape[:2] != self.size:
            raise InputError(f"images: '{self.folder / name}' is turned by its EXIF orientation; save it upright")
        return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


class ImageArray:
    """The images of an .npz in ADM's format, read as they are asked for: memory holds no more than these.

    Raises:
        InputError: no such array, or not uint8 (N, H, W, 3).
    """

    names, container = None, "npz"

    def __init__(self, path: str | Path):
        self._array = NpzMember(path, IMAGES)
        shape = self._array.shape
        if self._array.dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or not shape[0]:
            raise InputError(
                f"'{path}': expected '{IMAGES}' as uint8 images (N, H, W, 3), got {self._array.dtype} {shape}"
            )
        self._count, self.size = shape[0], tuple(shape[1:3])

    def __len__(self) -> int:
        return self._count

    def read(self, indices: Sequence[int]) -> Tensor:
        images = np.stack([self._array.row(i) for i in indices])
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def describe(self) -> dict[str, object]:
        return {"lossy": False}

    def identity(self) -> dict[str, object]:
        path = self._array.path
        return {"images": str(path), "available": len(self), **_marks({IMAGES: path})}


def image_set(path: str | Path, *, lossy: bool = False) -> ImageSet:
    """Those in the folder or the .npz file ``path``."""
    if Path(path).is_dir():
        return ImageFolder(path, lossy=lossy)
    if Path(path).suffix == ".npz" and Path(path).is_file():
        with opened_npz(path) as arrays:
            if IMAGES not in arrays:
                raise InputError(f"images: '{path}' has no array '{IMAGES}'; it has {', '.join(arrays.files)}")
        return ImageArray(path)
    raise InputError(f"images: '{path}' is neither a folder of images nor an .npz file; check the path")


class GivenImages:
    """Some of a set's images as what an evaluation measures: called like a pipeline, the seeds do nothing.

    ``samples``: what stands in the place of their conditions.

    Args:
        images: see ``image_set``.
        count: how many are measured; of a larger set a subset, drawn from ``seed``.
        prompts: captions of the set's images, one for each, for measures that read them.
        device: where they are measured.

    Raises:
        InputError: there are fewer images, another number of captions, or captions for names whose order as text is
            not that of their numbers.
    """

    reads_seeds = False
    """See ``card.protocol``."""

    def __init__(
        self, images: ImageSet, *, count: int, seed: int, device: torch.device | str, prompts: PromptFile | None = None
    ):
        if count > len(images):
            raise InputError(
                f"num_images: {count} are wanted, there are {len(images)} images; lower num_images to {len(images)} or "
                "give more images"
            )
        if prompts is not None and len(prompts) != len(images):
            raise InputError(f"prompts: {len(prompts)} captions for {len(images)} images; expected one for each image")
        if prompts is not None and images.names is not None:
            _check_order(images.names)
        self.images, self.device = images, torch.device(device)
        self._chosen = subset(len(images), count, seed)
        self._choice = {"choice": "all"}
        if count < len(images):
            self._choice = {"choice": RULE, "seed": seed, "available": len(images)}
        self.samples = GivenSamples(images.names, self._chosen, prompts)

    def __call__(self, batch: Batch, seeds: list[int]) -> Tensor:
        """The chosen images ``batch.start`` to ``batch.start + len(batch)``, uint8 (B, 3, H, W)."""
        return self.images.read(self._chosen[batch.start : batch.start + len(batch)]).to(self.device)

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {"images": "given", **self.images.describe(), **self._choice}


class GivenSamples:
    """Names and captions of the ``chosen`` of a set's images, as the engine's ``Samples``."""

    def __init__(self, names: Sequence[str] | None, chosen: Sequence[int], prompts: PromptFile | None):
        self._names, self._chosen, self._prompts = names, chosen, prompts

    def __len__(self) -> int:
        return len(self._chosen)

    def __call__(self, indices: range) -> Batch:
        chosen = self._chosen[indices.start : indices.stop]
        keys = [str(i) if self._names is None else self._names[i] for i in chosen]
        captions = None if self._prompts is None else [self._prompts.captions[i] for i in chosen]
        return Batch(keys=keys, caption=captions)

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {"conditions": "none"} if self._prompts is None else self._prompts.describe()


def subset(available: int, count: int, seed: int) -> list[int]:
    """``count`` of ``range(available)``, ascending: all, or drawn without replacement by ``seed`` alone."""
    if count == available:
        return list(range(available))
    drawn = torch.randperm(available, generator=keyed_generator(seed, "subset of given images"))[:count]
    return sorted(drawn.tolist())


def _check_order(names: Sequence[str]) -> None:
    """Raises InputError where numbers in the names make the i-th caption ambiguous: '10' comes before '2' as text."""
    for name, counted in zip(names, sorted(names, key=_as_counted)):
        if name != counted:
            raise InputError(
                f"prompts: images are sorted by their names as text, where '{name}' comes before '{counted}', and "
                "captions by line would go to the wrong ones; pad the numbers with zeros to one length (0002.png)"
            )


def _as_counted(name: str) -> list[str | int]:
    """Texts and numbers in turn."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", name))]


def _marks(files: Mapping[str, Path]) -> dict[str, str]:
    stats = {name: path.stat() for name, path in files.items()}
    listing = [[name, stat.st_size] for name, stat in stats.items()]
    stamps = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()]
    marks = {"listing": listing, "stamp": stamps}
    return {mark: hashlib.sha256(json.dumps(rows).encode()).hexdigest() for mark, rows in marks.items()}


def _head(path: Path) -> tuple[tuple[int, int], bool]:
    """Height and width, and whether pixels were lost, from the head of the file."""
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
            width, height = image.size
            lossy = image.format not in ("PNG", "WEBP") or (image.format == "WEBP" and _is_lossy_webp(path))
            return (height, width), lossy
    except (UnidentifiedImageError, Image.DecompressionBombError, *DECODE_ERRORS) as error:
        raise InputError(f"images: '{path}' is no readable PNG, WebP or JPEG image ({error})") from error


def _is_lossy_webp(path: Path) -> bool:
    """By the chunks of the RIFF container (RFC 9649): "VP8 " is lossy, "VP8L" is not; animations count as lossy."""
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            if head[:4] == b"VP8L":
                return False
            if head[:4] in (b"VP8 ", b"ANMF"):
                return True
            size = int.from_bytes(head[4:], "little")
            file.seek(size + size % 2, 1)
    return True

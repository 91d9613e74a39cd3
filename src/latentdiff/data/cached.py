"""Latents and encoded text out of what ``latentdiff cache`` writes, in the place of images.

A cache is a folder: ``cache.json``, the shards of ``train`` and ``val`` with their indexes, and ``empty_text.npz``, the
encoded empty caption. A sample has ``.latent.npy``, (2, C, h, w): mean and std of its raw posterior; ``.flipped.npy``,
the same of the mirrored image; ``.text.0.npz`` ..., its encoded captions in their order; and the source's ``.txt``,
``.json`` and ``.cls``.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from latentdiff import durable
from latentdiff.config.errors import InputError
from latentdiff.data.decode import BrokenSampleError
from latentdiff.data.image_reader import choose_caption, is_mirrored
from latentdiff.data.index import INDEX_NAME
from latentdiff.data.labels import Labels
from latentdiff.data.mixing import Mixture
from latentdiff.data.preparation import verify_once
from latentdiff.data.sample import captions_of, parsed_json
from latentdiff.data.shard_files import sha256_of
from latentdiff.data.shard_set import ShardSet
from latentdiff.data.shards import open_shards

MANIFEST, EMPTY_TEXT = "cache.json", "empty_text.npz"
SETS = ("train", "val")
LATENT, FLIPPED = "latent.npy", "flipped.npy"
KEPT = ("txt", "json", "cls")
"""Files of the source's samples that a cache keeps as they are."""
_VERSION = 1
_NO_ARRAY = (ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile)
"""What numpy and torch raise for other bytes, and for pickled objects."""


def text_member(number: int) -> str:
    """Extension of the encoded caption ``number``."""
    return f"text.{number}.npz"


@dataclass(frozen=True, kw_only=True)
class CacheManifest:
    """What a cache holds, and of what it was made."""

    image_size: int
    latent: dict[str, int]
    """Channels and factor."""
    first_stage: dict
    """``checkpoint.models.first_stage_record`` of the codec."""
    dtype: str
    mirrored: bool
    text: dict | None
    """Identity of the frozen text encoder; None where there is none."""
    captions: int | None
    """Most encoded captions of a sample; None: all."""
    source: dict[str, str]
    """Fingerprint of each set of images."""
    index: dict[str, str]
    """sha256 of each set's index."""
    left_out: int
    """Samples that could not be used."""
    made_with: dict[str, str]

    def save(self, folder: Path) -> None:
        content = {"version": _VERSION, **asdict(self)}
        durable.put_file(folder / MANIFEST, (json.dumps(content, indent=1) + "\n").encode())


def read_manifest(folder: str | Path) -> CacheManifest:
    """Raises InputError where the folder is no cache, or its shards are not those of its manifest."""
    path = Path(folder) / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("version") != _VERSION:
            raise ValueError("it is of another version of latentdiff")
        manifest = CacheManifest(**content)
    except OSError as error:
        raise InputError(
            f"'{folder}' is no cache ({MANIFEST}: {error.strerror}); make one with latentdiff cache"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"'{path}' cannot be used ({error}); make the cache again with latentdiff cache") from error
    for name in SETS:
        index = Path(folder) / name / INDEX_NAME
        if not index.is_file() or sha256_of(index) != manifest.index[name]:
            raise InputError(
                f"'{folder}' is stale: the shards of '{name}' are not those that {MANIFEST} was written for; make the "
                "cache again with latentdiff cache"
            )
    return manifest


class CachedSource:
    """The samples of the cache ``train``, both its sets."""

    name = "cached"

    def __init__(self, *, train: str) -> None:
        self.train = Path(train)

    def prepare(self) -> None:
        """Reads the shards through and holds them against their index."""
        read_manifest(self.train)
        for name in SETS:
            verify_once(str(self.train / name))

    def open(self) -> tuple[ShardSet, ShardSet]:
        train, val = (open_shards(self.train / name) for name in SETS)
        return train, val

    def mixture(self, train: ShardSet) -> Mixture | None:
        return None


class CachedReaders:
    """Makes readers of the cache ``train``."""

    def __init__(self, *, train: str) -> None:
        self.folder = Path(train)

    def check(self, shards: ShardSet) -> None:
        """InputError where the folder is no cache."""
        read_manifest(self.folder)

    def __call__(
        self, shards: ShardSet, *, draw: bool, seed: int, flip: bool, labels: Labels, require_captions: bool
    ) -> CachedReader:
        """Raises InputError for ``flip`` without mirrored copies."""
        manifest = read_manifest(self.folder)
        if flip and not manifest.mirrored:
            raise InputError(
                f"data.flip: '{self.folder}' has no mirrored copies; make it with data.flip=true, or set false"
            )
        empty = None if manifest.text is None else load_text((self.folder / EMPTY_TEXT).read_bytes())
        side = manifest.image_size // manifest.latent["factor"]
        return CachedReader(
            shards,
            shape=(2, manifest.latent["channels"], side, side),
            captions=manifest.captions,
            empty_text=empty,
            seed=seed,
            draw=draw,
            flip=flip,
            labels=labels,
            require_captions=require_captions,
        )


@dataclass(frozen=True)
class CachedRow:
    """One sample, ready for a batch."""

    latent: Tensor
    """(2, C, h, w): mean and std."""
    caption: str
    label: int
    attributes: dict
    text: Mapping[str, Tensor]
    """``tokens``, ``mask`` and ``vector`` of the caption, as far as the encoder gives them."""


class CachedReader:
    """Reads samples of a cache; caption and mirroring are drawn as ``ImageReader`` draws them for the same sample.

    ``shape``: of a ``.latent.npy``. ``captions``: most captions of a sample that are encoded. ``empty_text``: None
    where no captions are. With ``draw`` off the main caption is taken and nothing is mirrored.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        shape: tuple[int, ...],
        captions: int | None,
        empty_text: Mapping[str, Tensor] | None,
        seed: int,
        draw: bool,
        flip: bool,
        labels: Labels,
        require_captions: bool,
    ) -> None:
        self.shards, self.shape, self.captions, self.empty_text = shards, shape, captions, empty_text
        self.seed, self.draw, self.flip = seed, draw, flip
        self.labels, self.require_captions = labels, require_captions

    def read(self, epoch: int, index: int) -> CachedRow:
        attributes = parsed_json(self.shards.read(index, "json"))
        captions = captions_of(self.shards.read(index, "txt"), attributes)[: self.captions]
        draws = (self.seed, epoch, index) if self.draw else None
        number = choose_caption(captions, draws, required=self.require_captions)
        mirrored = self.flip and draws is not None and is_mirrored(*draws)
        return CachedRow(
            latent=self._latent(index, FLIPPED if mirrored else LATENT),
            caption=captions[number] if captions else "",
            label=self.labels.of(self.shards.read(index, "cls"), attributes, self.shards.where(index)),
            attributes=attributes,
            text=self._text(index, number if captions else None),
        )

    def collate(self, rows: Sequence[CachedRow]) -> dict[str, Any]:
        latent = default_collate([row.latent for row in rows])
        text = {} if self.empty_text is None else default_collate([dict(row.text) for row in rows])
        return {
            "latent_mean": latent[:, 0],
            "latent_std": latent[:, 1],
            "caption": [row.caption for row in rows],
            "label": torch.tensor([row.label for row in rows], dtype=torch.int64),
            "attributes": None if self.draw else [row.attributes for row in rows],
            **{f"text_{name}": values for name, values in text.items()},
        }

    def _latent(self, index: int, member: str) -> Tensor:
        latent = _tensor(self._stored(index, member))
        if tuple(latent.shape) != self.shape:
            raise BrokenSampleError(f"its .{member} has the shape {tuple(latent.shape)}, expected {self.shape}")
        return latent

    def _text(self, index: int, number: int | None) -> Mapping[str, Tensor]:
        if self.empty_text is None:
            return {}
        return self.empty_text if number is None else load_text(self._stored(index, text_member(number)))

    def _stored(self, index: int, member: str) -> bytes:
        data = self.shards.read(index, member)
        if data is None:
            raise BrokenSampleError(f"it has no .{member}")
        return data


def load_text(data: bytes) -> dict[str, Tensor]:
    """What ``dump_text`` made. Raises BrokenSampleError for anything else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            return {name: torch.from_numpy(stored[name]) for name in stored.files}
    except (*_NO_ARRAY, AttributeError) as error:
        raise BrokenSampleError(f"it holds no numpy arrays ({error})") from error


def dump_text(parts: Mapping[str, Tensor]) -> bytes:
    """One caption's ``tokens`` (L, D), ``mask`` (L,) and ``vector`` (V,), as far as there are any, as an ``.npz``."""
    file = io.BytesIO()
    np.savez(file, **{name: part.cpu().numpy() for name, part in parts.items()})
    return file.getvalue()


def dump_array(values: Tensor) -> bytes:
    """As an ``.npy``."""
    file = io.BytesIO()
    np.save(file, values.cpu().numpy(), allow_pickle=False)
    return file.getvalue()


def _tensor(data: bytes) -> Tensor:
    try:
        return torch.from_numpy(np.load(io.BytesIO(data), allow_pickle=False))
    except _NO_ARRAY as error:
        raise BrokenSampleError(f"it holds no numpy array ({error})") from error

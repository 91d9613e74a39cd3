"""One sample of a shard set, read, checked and decoded."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from latentdiff.config.errors import InputError
from latentdiff.data.decode import BrokenSampleError, decode_rgb
from latentdiff.data.shard_set import ShardSet


@dataclass(frozen=True)
class Sample:
    """What the shards hold of one sample."""

    pixels: np.ndarray
    """uint8 (H, W, 3) as stored, before crop and resize."""
    captions: list[str]
    """Its wordings, the main one first; empty where it has none."""
    label: int
    """-1 where it has none."""
    attributes: dict
    """Its ``.json``."""


def read_sample(shards: ShardSet, index: int, max_pixels: int) -> Sample:
    """Raises BrokenSampleError where a file of the sample cannot be used."""
    attributes = _json(shards.read(index, "json"))
    return Sample(
        pixels=decode_rgb(shards.read_image(index), max_pixels),
        captions=_captions(shards.read(index, "txt"), attributes),
        label=_label(shards.read(index, "cls")),
        attributes=attributes,
    )


def check_captions(shards: ShardSet) -> None:
    """InputError where samples have neither a ``.txt`` nor a ``.json`` that might hold a caption."""
    _check_present(
        shards, shards.has("txt") | shards.has("json"), "caption (.txt, or 'caption' in .json)", "require_captions"
    )


def check_labels(shards: ShardSet) -> None:
    """InputError where samples have no ``.cls``."""
    _check_present(shards, shards.has("cls"), "label (.cls)", "require_labels")


def _check_present(shards: ShardSet, present: np.ndarray, what: str, option: str) -> None:
    missing = np.flatnonzero(~present)
    if len(missing):
        first = ", ".join(shards.key(int(i)) for i in missing[:3])
        raise InputError(
            f"{len(missing)} of {len(shards)} samples have no {what}, first {first}; add them, "
            f"or set data.module.{option}=false where the model is not conditioned on them"
        )


def _json(data: bytes | None) -> dict:
    if not data:
        return {}
    try:
        value = json.loads(data)
    except ValueError as error:
        raise BrokenSampleError(f"its .json cannot be parsed ({error})") from error
    if not isinstance(value, dict):
        raise BrokenSampleError(f"its .json is not an object but {type(value).__name__}")
    return value


def _captions(text: bytes | None, attributes: dict) -> list[str]:
    """``captions`` of the .json, else the .txt, else ``caption`` of the .json."""
    several = attributes.get("captions")
    stored = several if isinstance(several, list) else []
    found = [_clean(caption) for caption in stored if isinstance(caption, str)]
    if not any(found):
        single = attributes.get("caption")
        found = [
            _clean(text.decode("utf-8-sig", "replace")) if text else "",
            _clean(single) if isinstance(single, str) else "",
        ]
        found = [caption for caption in found if caption][:1]
    return [caption for caption in found if caption]


def _clean(caption: str) -> str:
    return " ".join(caption.split())


def _label(data: bytes | None) -> int:
    if not data:
        return -1
    try:
        return int(data)
    except ValueError as error:
        raise BrokenSampleError(f"its .cls is not a whole number but {data[:20]!r}") from error

"""One sample of a shard set, read, checked and decoded."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from latentdiff.config.errors import InputError
from latentdiff.data.decode import BrokenSampleError, decode_rgb
from latentdiff.data.labels import Labels
from latentdiff.data.shard_names import is_remote
from latentdiff.data.shard_set import ShardSet
from latentdiff.data.shard_table import printable

_CHECKED_LABELS = 20_000
_LONGEST_CAPTION = 8192
"""Characters; what is beyond them no text encoder here would read."""
_UNUSABLE = {**dict.fromkeys([*range(32), *range(127, 160)], " "), **dict.fromkeys(range(0xD800, 0xE000), "\ufffd")}
"""Control characters (Unicode category Cc) become spaces, halves of surrogate pairs (UTF-8 has none) U+FFFD."""


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
    where: str
    """Its key and shard file, for messages."""
    read: Callable[[str], bytes | None]
    """Extension -> the bytes of that file of the sample, None where it has none."""


def read_sample(
    shards: ShardSet, index: int, max_pixels: int, labels: Labels, background: Sequence[int] = (255, 255, 255)
) -> Sample:
    """Raises BrokenSampleError where a file of the sample cannot be used, InputError where its label is unknown."""
    attributes = parsed_json(shards.read(index, "json"))
    where = shards.where(index)
    return Sample(
        pixels=decode_rgb(shards.read_image(index), max_pixels, background),
        captions=captions_of(shards.read(index, "txt"), attributes),
        label=labels.of(shards.read(index, "cls"), attributes, where),
        attributes=attributes,
        where=where,
        read=partial(shards.read, index),
    )


def check_captions(shards: ShardSet) -> None:
    """InputError where samples have neither a ``.txt`` nor a ``.json`` that might hold a caption."""
    check_present(
        shards,
        shards.has("txt") | shards.has("json"),
        "caption (.txt, or 'caption' in .json)",
        "set data.module.require_captions=false where the model is not conditioned on them",
    )


def check_labels(shards: ShardSet, labels: Labels) -> None:
    """InputError where a required label is missing or one is of an unknown class.

    Of the labels themselves all are read, or 20,000 spread evenly over a larger set; of remote shards those in the
    first, so that no others are fetched. Broken ones are left to reading.
    """
    if labels.required:
        present = shards.has("cls" if labels.entry is None else "json")
        remedy = "set data.module.require_labels=false where the model is not conditioned on them"
        check_present(shards, present, f"label ({labels.place})", remedy)
    if labels.count is None and not labels.required:
        return
    near = within_reach(shards, remote=1)
    spread = np.unique(np.linspace(0, len(near) - 1, min(len(near), _CHECKED_LABELS)).astype(np.int64))
    for index in near[spread].tolist():
        try:
            attributes = parsed_json(shards.read(index, "json")) if labels.entry is not None else {}
            labels.of(shards.read(index, "cls"), attributes, shards.where(index))
        except BrokenSampleError:
            continue


def within_reach(shards: ShardSet, *, remote: int) -> np.ndarray:
    """int64: the samples in local shards, and in ``remote`` of the remote ones, spread evenly from the first on."""
    shard_of = shards.shard_of()
    used = np.unique(shard_of)
    far = np.array([shard for shard in used.tolist() if is_remote(shards.table.paths[shard])], dtype=np.int64)
    fetched = far[np.linspace(0, len(far), min(remote, len(far)), endpoint=False).astype(np.int64)]
    return np.flatnonzero(~np.isin(shard_of, np.setdiff1d(far, fetched)))


def check_present(shards: ShardSet, present: np.ndarray, what: str, remedy: str) -> None:
    """InputError where ``present``, bool (samples,), is false for any sample."""
    missing = np.flatnonzero(~present)
    if len(missing):
        first = ", ".join(printable(shards.key(int(i))) for i in missing[:3])
        raise InputError(
            f"{len(missing)} of {len(shards)} samples have no {what}, first {first}; add them, or {remedy}"
        )


def parsed_json(data: bytes | None) -> dict:
    if not data:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BrokenSampleError(f"its .json cannot be parsed ({error})") from error
    if not isinstance(value, dict):
        raise BrokenSampleError(f"its .json is not an object but {type(value).__name__}")
    return value


def captions_of(text: bytes | None, attributes: dict) -> list[str]:
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
    """One line of at most ``_LONGEST_CAPTION`` characters, without control characters."""
    return " ".join(caption.translate(_UNUSABLE).split())[:_LONGEST_CAPTION].rstrip()

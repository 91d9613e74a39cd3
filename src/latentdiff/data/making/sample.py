"""A row of a source to a sample of a shard, with the entries of img2dataset's ``.json``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from latentdiff.data.decode import BrokenSampleError
from latentdiff.data.making.images import Picture, Preparation
from latentdiff.data.making.source import LeftOutError, Raw, Row
from latentdiff.data.segmentation import MAP_EXTENSION


@dataclass(frozen=True)
class Made:
    """What became of a row. One that is left out has no ``sample`` but ``what`` and ``why``; a sample may have them
    too, as something to know of it."""

    name: str
    sample: dict | None = None
    """As ``data.shards.write_shard`` takes it."""
    digest: str = ""
    """sha256 of the image file as the source has it."""
    what: str = ""
    why: str = ""


def make_sample(row: Row, preparation: Preparation) -> Made:
    """Loads the row and prepares its image; a pure function of the row and its files."""
    name = _encodable(row.name)
    try:
        raw = row.load()
        picture = preparation(raw.image, raw.map)
    except LeftOutError as left:
        return Made(name, what=left.what, why=_encodable(left.why))
    except (BrokenSampleError, OSError) as error:
        return Made(name, what="unreadable", why=_encodable(str(error)))
    digest = hashlib.sha256(raw.image).hexdigest()
    sample = _sample(raw, picture, name, digest)
    if not raw.captions and raw.label is None:
        return Made(name, sample, digest, "no caption", "written without one")
    return Made(name, sample, digest)


def _sample(raw: Raw, picture: Picture, name: str, digest: str) -> dict:
    sample: dict = {picture.extension: picture.data}
    entries: dict = {"original_height": picture.original_height, "original_width": picture.original_width}
    if raw.captions:
        sample["txt"] = entries["caption"] = _encodable(raw.captions[0])
    if len(raw.captions) > 1:
        entries["captions"] = list(raw.captions)
    stored = {"height": picture.height, "width": picture.width, "sha256": digest, "source": name}
    entries |= {**raw.values, **stored, "status": "success", "error_message": None}
    sample["json"] = json.loads(_encodable(json.dumps(entries, ensure_ascii=False)))
    if raw.label is not None:
        sample["cls"] = str(raw.label)
    if picture.map_data is not None:
        sample[MAP_EXTENSION] = picture.map_data
    return sample


def _encodable(text: str) -> str:
    """Halves of surrogate pairs, which UTF-8 does not have (JSON and names of files may), become '?'."""
    return text.encode("utf-8", "replace").decode()

"""What is in a set of shards: image sizes, captions, classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from latentdiff.data.decode import BrokenSampleError
from latentdiff.data.image_header import upright_size
from latentdiff.data.sample import captions_of, parsed_json
from latentdiff.data.shard_set import ShardSet


@dataclass
class ShardStatistics:
    """Counts over all samples of a set."""

    samples: int
    shards: int
    bytes: int
    """Of the files in the shards."""
    sizes: np.ndarray
    """int32 (n, 2): height and width of each upright image whose header can be read."""
    characters: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    """Of each sample's main caption, where it has one."""
    wordings: int = 0
    """Captions in all; a sample may have several."""
    repeated: int = 0
    """Samples whose main caption an earlier one has too."""
    without_caption: int = 0
    broken_json: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    """``.cls`` -> samples."""

    @property
    def unreadable(self) -> int:
        """Samples whose image header cannot be read."""
        return self.samples - len(self.sizes)


def shard_statistics(shards: ShardSet, progress: Callable[[int], None] | None = None) -> ShardStatistics:
    """Reads every caption and class, and where there is no index the header of every image; decodes none.

    ``progress`` is called with the number of samples read.
    """
    sizes = shards.sizes()
    measured = [] if sizes is None else None
    stored = int(shards.table.files["size"].sum(dtype=np.int64))
    found = ShardStatistics(len(shards), len(shards.table.paths), stored, np.zeros((0, 2), np.int32))
    seen: set[str] = set()
    for index in range(len(shards)):
        _count_captions(shards, index, found, seen)
        if (label := shards.read(index, "cls")) is not None:
            found.labels[label.decode("utf-8", "replace").strip()] += 1
        if measured is not None:
            measured.append(upright_size(shards.read_image(index)))
        if progress is not None:
            progress(index + 1)
    sizes = np.array(measured, np.int32).reshape(-1, 2) if sizes is None else sizes
    found.sizes = sizes[(sizes > 0).all(axis=1)]
    return found


def _count_captions(shards: ShardSet, index: int, found: ShardStatistics, seen: set[str]) -> None:
    try:
        attributes = parsed_json(shards.read(index, "json"))
    except BrokenSampleError:
        found.broken_json += 1
        attributes = {}
    captions = captions_of(shards.read(index, "txt"), attributes)
    if not captions:
        found.without_caption += 1
        return
    found.wordings += len(captions)
    found.characters.append(len(captions[0]))
    found.words.append(len(captions[0].split()))
    found.repeated += captions[0] in seen
    seen.add(captions[0])

"""What is counted over a set of shards."""

from __future__ import annotations

import numpy as np

from latentdiff.data.shard_statistics import shard_statistics


def test_sizes_captions_and_classes_are_counted(make_set, png, image):
    samples = [
        {"png": png(image(0, 8, 12)), "txt": "one two", "cls": 3},
        {"png": png(image(0, 9, 5)), "json": {"captions": ["a", "b", ""], "caption": "c"}, "cls": 3},
        {"png": b"no image", "txt": " one  two\n", "json": b"{"},
        {"jpg": png(image(0, 4, 4), "JPEG"), "txt": "", "json": {"caption": 5}},
    ]
    shards = make_set(samples, per_shard=2)
    seen = []
    found = shard_statistics(shards, seen.append)
    assert np.array_equal(found.sizes, [[8, 12], [9, 5], [4, 4]])
    assert (found.samples, found.shards, found.unreadable, found.broken_json) == (4, 2, 1, 1)
    assert (found.characters, found.words) == ([7, 1, 7], [2, 1, 2])
    assert (found.wordings, found.repeated, found.without_caption) == (4, 1, 1)
    assert found.labels == {"3": 2}
    extensions = ("png", "jpg", "txt", "json", "cls")
    assert found.bytes == sum(len(shards.read(i, extension) or b"") for i in range(4) for extension in extensions)
    assert seen == [1, 2, 3, 4]

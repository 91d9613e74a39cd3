from __future__ import annotations

import pytest

from latentdiff.config.errors import InputError
from latentdiff.data.shard_names import expand_urls


def listing(folder):
    return [f"{number:05d}.tar" for number in range(3)] if folder in ("s3://bucket/set", "hf://datasets/a/b") else None


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        ("s3://bucket/set", ["s3://bucket/set/00000.tar", "s3://bucket/set/00001.tar", "s3://bucket/set/00002.tar"]),
        ("s3://bucket/set/{00001..00002}.tar", ["s3://bucket/set/00001.tar", "s3://bucket/set/00002.tar"]),
        ("s3://bucket/set/*2.tar", ["s3://bucket/set/00002.tar"]),
        (["hf://datasets/a/b/00002.tar", "s3://bucket/set/00000.tar"],) * 2,
    ],
)
def test_urls_are_expanded_by_the_index(urls, expected):
    assert expand_urls(urls, listing) == expected


@pytest.mark.parametrize("urls", ["s3://bucket/set/{00002..00003}.tar", "s3://bucket/set/x*.tar"])
def test_urls_that_are_not_in_the_index_are_refused(urls):
    with pytest.raises(InputError, match=r"00003\.tar is not listed|does not exist"):
        expand_urls(urls, listing)


def test_names_with_braces_or_stars_are_taken_as_they_are(tmp_path):
    for name in ("{a,b}.tar", "x*.tar", "xy.tar"):
        (tmp_path / name).write_bytes(b"")
    assert expand_urls(tmp_path / "{a,b}.tar") == [str(tmp_path / "{a,b}.tar")]
    assert expand_urls(tmp_path / "x*.tar") == [str(tmp_path / "x*.tar")]
    assert expand_urls(f"{tmp_path}/x?.tar") == [str(tmp_path / "x*.tar"), str(tmp_path / "xy.tar")]

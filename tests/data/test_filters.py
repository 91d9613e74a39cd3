from __future__ import annotations

import pytest

from latentdiff.config.errors import InputError
from latentdiff.data.index import INDEX_NAME
from latentdiff.data.shards import write_shards
from latentdiff.data.sources import ShardSource

SHAPES = [(10, 10), (9, 30), (30, 10), (12, 8), (40, 20)]


@pytest.fixture
def folder(tmp_path, png, image):
    write_shards(
        [*({"png": png(image(i, *shape))} for i, shape in enumerate(SHAPES)), {"png": b"no picture"}],
        tmp_path / "set",
        4,
    )
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"min_size": 1}, [0, 1, 2, 3, 4]),
        ({"min_size": 10}, [0, 2, 4]),
        ({"max_aspect": 2}, [0, 3, 4]),
        ({"min_size": 10, "max_aspect": 1.5}, [0]),
    ],
)
def test_images_are_left_out_by_their_sizes(folder, options, left, caplog):
    train, val = ShardSource(train=str(folder), val=str(folder), **options).open()
    assert [int(key.split("/")[1]) % 10_000 + 4 * (key[4] == "1") for key in train.all_keys()] == left
    assert len(val) == 6
    assert not options or f"{len(left)} of 6 training samples are left" in caplog.text


def test_the_fingerprint_tells_the_filtered_set(folder):
    sources = [ShardSource(train=str(folder), val=str(folder), min_size=n) for n in (None, 1, 10)]
    assert len({source.open()[0].fingerprint() for source in sources}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_aspect": 0}, r"^data\.max_aspect: .* at least 1, got 0"),
        ({"max_aspect": 0.5}, r"^data\.max_aspect: .* at least 1, got 0\.5"),
        ({"min_size": -1}, r"^data\.min_size: expected at least 0 pixels, got -1"),
        ({"damaged": "ignore"}, r"^data\.damaged: expected stop or skip, got 'ignore'"),
    ],
)
def test_senseless_settings_are_refused(folder, options, message):
    with pytest.raises(InputError, match=message):
        ShardSource(train=str(folder), **options).open()


def test_filters_that_leave_nothing_or_know_nothing_are_refused(folder):
    with pytest.raises(InputError, match=r"none of 6 samples is left: 6 are below data\.min_size=50, 0 above"):
        ShardSource(train=str(folder), min_size=50).open()
    (folder / INDEX_NAME).unlink()
    with pytest.raises(InputError, match=r"data\.min_size and data\.max_aspect: .* run 'latentdiff shards index"):
        ShardSource(train=str(folder), min_size=5).open()

import shutil
from pathlib import Path

import pytest
import torch

from latentdiff import durable
from latentdiff.checkpoint import shelf, store


@pytest.fixture
def save(tmp_path: Path):
    """``save(name, batch)`` as training does, keeping two beside ``best``."""

    def run(name: str, batches_seen: int, keep: int = 2) -> None:
        counters = {"batches_seen": batches_seen, "images_seen": 0}
        place = tmp_path / name
        store.save(
            place,
            kind="diffusion",
            model={"a": torch.tensor(batches_seen)},
            config="",
            counters=counters,
            keep_as=shelf.keep_as(place, batches_seen),
        )
        if name == "last":
            shelf.prune(tmp_path, keep)

    return run


@pytest.fixture
def names(tmp_path: Path):
    return lambda: sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("keep", "older"), [(1, []), (2, ["batch-00000006"]), (3, ["batch-00000004", "batch-00000006"])]
)
def test_what_was_last_is_kept_under_its_batch(save, names, tmp_path: Path, keep: int, older: list[str]) -> None:
    for batches_seen in (2, 4, 6, 8):
        save("last", batches_seen, keep)
    assert names() == [*older, "last"]
    for name in older:
        assert (
            store.load_weights(tmp_path / name)["a"]
            == int(name[-8:])
            == store.verify(tmp_path / name).counters["batches_seen"]
        )


def test_a_second_save_of_the_same_batch_replaces_it(save, names) -> None:
    for batches_seen in (2, 4, 4):
        save("last", batches_seen)
    assert names() == ["batch-00000002", "last"]


def test_a_run_that_comes_by_the_same_batches_again(save, names, tmp_path: Path) -> None:
    """Resumed from 2, with what it had saved at 4 and 6 still there."""
    for batches_seen in (2, 4, 6):
        save("last", batches_seen, keep=3)
    save("last", 4, keep=3)
    assert names() == ["batch-00000002", "last"]
    save("last", 6, keep=3)
    assert names() == ["batch-00000002", "batch-00000004", "last"]
    assert shelf.first_whole(shelf.standing(tmp_path)) == (tmp_path / "last", [])


def test_a_damaged_last_is_not_kept_in_the_place_of_a_whole_one(save, names, tmp_path: Path) -> None:
    for batches_seen in (2, 4):
        save("last", batches_seen)
    (tmp_path / "last" / "manifest.json").write_text("{")
    save("last", 6)
    assert names() == ["batch-00000002", "last"]
    assert store.verify(tmp_path / "last").counters["batches_seen"] == 6


def test_the_newest_comes_first(save, tmp_path: Path) -> None:
    def order() -> list[str]:
        return [path.name for path in shelf.standing(tmp_path)]

    for batches_seen in (2, 4):
        save("last", batches_seen)
    save("best", 3)
    assert order() == ["last", "best", "batch-00000002"]
    save("best", 4)
    assert order() == ["last", "best", "batch-00000002"]
    save("best", 5)
    assert order() == ["best", "last", "batch-00000002"]
    assert [path.name for path in shelf.standing(tmp_path, best=False)] == ["last", "batch-00000002"]


def test_a_course_that_was_left_comes_last(save, tmp_path: Path) -> None:
    """``best`` of batch 9 was saved, then training went on from batch 4."""
    save("last", 4)
    save("best", 9)
    save("last", 6)
    assert [path.name for path in shelf.standing(tmp_path)] == ["last", "batch-00000004", "best"]


def test_none_stands_in_an_empty_or_missing_folder(tmp_path: Path) -> None:
    assert shelf.standing(tmp_path) == shelf.standing(tmp_path / "nowhere") == []
    (tmp_path / ".tmp-last-01234567").mkdir()
    assert shelf.standing(tmp_path) == []
    assert shelf.first_whole([]) == (None, [])


def test_tidying_brings_back_what_was_being_replaced(save, names, tmp_path: Path) -> None:
    save("best", 2)
    (tmp_path / "best").rename(tmp_path / ".old-best-01234567")
    (tmp_path / ".tmp-last-01234567").mkdir()
    assert [path.name for path in shelf.standing(tmp_path)] == [".old-best-01234567"]
    durable.tidy(tmp_path)
    assert names() == ["best"]
    (tmp_path / ".old-best-89abcdef").mkdir()
    durable.tidy(tmp_path)
    assert names() == ["best"]


def test_where_last_is_gone_nothing_is_removed(save, names, tmp_path: Path) -> None:
    for batches_seen in (2, 4, 6):
        save("last", batches_seen, keep=3)
    shutil.rmtree(tmp_path / "last")
    shelf.prune(tmp_path, keep=1)
    assert names() == ["batch-00000002", "batch-00000004"]

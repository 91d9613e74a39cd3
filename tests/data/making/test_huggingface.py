"""Data sets of HuggingFace's ``datasets``, from disk."""

from __future__ import annotations

import datasets
import pytest

from latentdiff.config.errors import InputError
from latentdiff.data.making.columns import Columns
from latentdiff.data.making.huggingface import HuggingFaceSource


@pytest.fixture
def saved(tmp_path, png, noise):
    """A saved data set of five JPEGs with captions and named classes, and the files' bytes."""
    files = [png(noise(i), "JPEG") for i in range(5)]
    features = datasets.Features(
        picture=datasets.Image(),
        text=datasets.Value("string"),
        kind=datasets.ClassLabel(names=["cat", "dog"]),
        stars=datasets.Value("int64"),
        boxes=datasets.Sequence(datasets.Value("float32")),
    )
    columns = {
        "picture": [{"bytes": file, "path": None} for file in files],
        "text": [f"number {i}" for i in range(5)],
        "kind": [0, 1, 1, -1, 0],
        "stars": list(range(5)),
        "boxes": [[0.5]] * 5,
    }
    data = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(train=data.select(range(4)), test=data.select([4])).save_to_disk(tmp_path / "dict")
    data.save_to_disk(tmp_path / "one")
    return tmp_path, files


def test_images_captions_and_named_classes_of_a_saved_set(saved, made, entries):
    folder, files = saved
    source = HuggingFaceSource(str(folder / "one"), None, Columns("picture", None, "kind"))
    assert [row.captions for row in source.rows(3)] == [("number 3",), ("number 4",)]
    shards, summary = made(source)
    assert [shards.read(i, "jpg") for i in range(5)] == files
    assert [shards.read(i, "cls") for i in range(5)] == [b"0", b"1", b"1", None, b"0"]
    assert [(v["caption"], v["stars"]) for v in entries(shards)] == [(f"number {i}", i) for i in range(5)]
    assert (folder / "made" / "classes.json").read_text().split() == ["[", '"cat",', '"dog"', "]"]
    assert summary.notes == []


def test_splits_and_columns_that_are_missing_are_told(saved):
    folder = saved[0]
    columns = Columns("picture")
    assert len(HuggingFaceSource(str(folder / "dict"), None, columns)) == 4
    assert len(HuggingFaceSource(str(folder / "dict"), "train", columns)) == 4
    assert len(HuggingFaceSource(str(folder / "dict"), "test", columns)) == 1
    with pytest.raises(InputError, match="split 'val'"):
        HuggingFaceSource(str(folder / "dict"), "val", columns)
    with pytest.raises(InputError, match="saved without splits, so there is no 'val'"):
        HuggingFaceSource(str(folder / "one"), "val", columns)
    with pytest.raises(InputError, match="its columns are 'picture', 'text'"):
        HuggingFaceSource(str(folder / "one"), None, Columns())


def test_a_folder_of_parquet_files_is_a_set_too(saved, tmp_path, monkeypatch):
    folder, files = saved
    (folder / "files").mkdir()
    datasets.load_from_disk(folder / "one").to_parquet(folder / "files" / "train-00000.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = HuggingFaceSource(str(folder / "files"), "train", Columns("picture"))
    assert [row.image for row in source.rows(0)] == files
    assert len(HuggingFaceSource(str(folder / "files"), None, Columns("picture"))) == 5
    datasets.load_dataset(str(folder / "files"), split="train").save_to_disk(folder / "of a split")
    assert len(HuggingFaceSource(str(folder / "of a split"), "train", Columns("picture"))) == 5
    halves = [HuggingFaceSource(str(folder / "files"), f"train[{part}]", Columns("picture")) for part in (":2", "2:4")]
    assert halves[0].identity() != halves[1].identity()

from __future__ import annotations

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from latentdiff.config.errors import InputError
from latentdiff.data import shapes_set
from latentdiff.data.shards import sha256_of, verify_shards
from latentdiff.data.sources import ShapesSource
from latentdiff.shapes.renderer import render, segmentation
from latentdiff.shapes.scene import HELD_OUT, from_attributes


def source(root, seed=3, **sizes):
    return ShapesSource(root=str(root), image_size=32, seed=seed, **{"train_samples": 40, "val_samples": 30, **sizes})


def digests(folder):
    return {str(p.relative_to(folder)): sha256_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_set_is_a_pure_function_of_the_seed(tmp_path):
    sources = [source(tmp_path / "a"), source(tmp_path / "b"), source(tmp_path / "c", seed=4)]
    for each in sources:
        each.prepare()
    first, same, other = (digests(each.folder) for each in sources)
    assert first == same
    assert first["train/00000.tar"] != other["train/00000.tar"]
    prints = [each.open()[0].fingerprint() for each in sources]
    assert prints[0] == prints[1] != prints[2]


def test_a_larger_set_begins_with_the_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes_set, "SAMPLES_PER_SHARD", 8)
    small, large = source(tmp_path, train_samples=20), source(tmp_path, train_samples=40)
    for each in (small, large):
        each.prepare()
    (a, _), (b, _) = small.open(), large.open()
    assert [a.read_image(i) for i in range(20)] == [b.read_image(i) for i in range(20)]
    assert a.all_keys() == b.all_keys()[:20]


def test_files_of_a_sample_agree_with_its_attributes(tmp_path):
    made = source(tmp_path)
    made.prepare()
    for shards in made.open():
        verify_shards(shards.table.paths)
        for i in range(0, len(shards), 7):
            values = json.loads(shards.read(i, "json"))
            scene = from_attributes(values)
            image, map_ = (np.asarray(Image.open(io.BytesIO(shards.read(i, e)))) for e in ("png", "seg.png"))
            assert np.array_equal(image, render(scene, 32))
            assert np.array_equal(map_, segmentation(scene, 32))
            assert values["caption"] == shards.read(i, "txt").decode()
            assert int(shards.read(i, "cls")) == scene.label
            assert (values["width"], values["height"]) == (32, 32)


def test_held_out_pairs_occur_in_validation_only(tmp_path):
    made = source(tmp_path, train_samples=300)
    made.prepare()
    train, val = (
        {(o["shape"], o["colour"]) for i in range(len(s)) for o in json.loads(s.read(i, "json"))["objects"]}
        for s in made.open()
    )
    assert train.isdisjoint(HELD_OUT)
    assert val & HELD_OUT


def test_it_is_made_once_and_again_when_the_generator_changes(tmp_path, monkeypatch):
    made = source(tmp_path)
    made.prepare()
    inode = os.stat(made.folder).st_ino
    made.prepare()
    assert os.stat(made.folder).st_ino == inode
    (made.folder / "train" / "00000.tar").unlink()
    monkeypatch.setattr(shapes_set, "_VERSION", shapes_set._VERSION + 1)
    made.prepare()
    assert len(made.open()[0]) == 40
    assert [p.name for p in tmp_path.iterdir()] == [made.folder.name]


def test_losing_the_race_is_no_error(tmp_path, monkeypatch):
    made = source(tmp_path)
    write_splits = shapes_set._write_splits

    def overtaken(*arguments):
        monkeypatch.setattr(shapes_set, "_write_splits", write_splits)
        source(tmp_path).prepare()
        write_splits(*arguments)

    monkeypatch.setattr(shapes_set, "_write_splits", overtaken)
    made.prepare()
    assert len(made.open()[0]) == 40
    assert [p.name for p in tmp_path.iterdir()] == [made.folder.name]


def test_a_foreign_folder_is_left_alone(tmp_path):
    made = source(tmp_path)
    made.folder.mkdir()
    (made.folder / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="in the way"):
        made.prepare()
    assert (made.folder / "thesis.txt").read_text() == "precious"

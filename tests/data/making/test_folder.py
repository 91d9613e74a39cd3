"""A folder of images: what goes with them, and what is left out."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from latentdiff.config.errors import InputError
from latentdiff.data.decode import decode_map, decode_rgb
from latentdiff.data.labels import Labels
from latentdiff.data.making.folder import FolderSource
from latentdiff.data.making.images import Preparation
from latentdiff.data.sample import read_sample


@pytest.fixture
def photos(tmp_path, png, image):
    folder = tmp_path / "photos"
    (folder / "sub" / ".hidden").mkdir(parents=True)
    (folder / "b.png").write_bytes(png(image(20, 8, 12)))
    (folder / "b.txt").write_text("a caption\n")
    (folder / "b.cls").write_text("3\n")
    (folder / "a.JPG").write_bytes(png(image(10), "JPEG"))
    (folder / "a.json").write_text(json.dumps({"captions": ["first", "second"], "licence": "x", "width": "wide"}))
    (folder / "sub" / "c.webp").write_bytes(png(image(30), "WEBP"))
    (folder / "broken.png").write_bytes(b"\x89PNG")
    (folder / "sub" / ".hidden" / "d.png").write_bytes(png(image(40)))
    (folder / "notes.md").write_text("not an image")
    (folder / "old.tiff").write_bytes(b"II*")
    return folder


def test_images_captions_and_labels_arrive_unchanged_and_sorted(photos, made, entries):
    shards, summary = made(FolderSource(photos))
    values = entries(shards)
    assert [v["source"] for v in values] == ["a.JPG", "b.png", "sub/c.webp"]
    assert [shards.read_image(i) for i in range(3)] == [(photos / v["source"]).read_bytes() for v in values]
    assert [shards.read(i, "txt") for i in range(3)] == [b"first", b"a caption", None]
    assert (values[0]["captions"], values[0]["licence"]) == (["first", "second"], "x")
    assert (values[0]["width"], values[1]["width"], values[1]["height"]) == (8, 12, 8)
    assert [shards.read(i, "cls") for i in range(3)] == [None, b"3", None]
    assert (summary.samples, summary.shards) == (3, 1)
    assert [(note["name"], note["what"]) for note in summary.notes] == [
        ("broken.png", "unreadable"),
        ("sub/c.webp", "no caption"),
        ("old.tiff", "unreadable"),
    ]


def test_class_folders_are_labels_and_loose_images_are_left_out(tmp_path, png, noise, made):
    folder = tmp_path / "classes"
    for i, name in enumerate(("tulip/deep/x.png", "daisy/y.png", "daisy/z.png", "loose.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(noise(i)))
    (folder / "rose").mkdir()
    shards, summary = made(FolderSource(folder, class_folders=True))
    assert [shards.read(i, "cls") for i in range(len(shards))] == [b"0", b"0", b"2"]
    assert json.loads((tmp_path / "made" / "classes.json").read_text()) == ["daisy", "rose", "tulip"]
    assert [(note["name"], note["what"]) for note in summary.notes] == [("loose.png", "no class")]
    with pytest.raises(InputError, match="holds no folders"):
        FolderSource(folder / "daisy", class_folders=True)


def test_maps_are_kept_beside_their_images_and_are_no_images(tmp_path, png, made):
    folder = tmp_path / "photos"
    folder.mkdir()
    classes = np.random.default_rng(0).integers(0, 5, (20, 30), dtype=np.uint8)
    for factor, name in ((50, "a"), (40, "b.c")):
        (folder / f"{name}.png").write_bytes(png(np.repeat(factor * classes[:, :, None], 3, axis=2)))
        (folder / f"{name}.seg.png").write_bytes(png(classes))
    (folder / "other.png").write_bytes(png(np.zeros((20, 30, 3), np.uint8)))
    (folder / "other.seg.png").write_bytes(png(classes[:, :29]))
    for name in ("A.SEG.PNG", "A2.seg.png"):
        (folder / name).write_bytes(png(classes))
    shards, summary = made(FolderSource(folder))
    assert [shards.read(i, "seg.png") for i in range(len(shards))] == [png(classes)] * 2
    lone = [note["name"] for note in summary.notes if note["what"] == "map without an image"]
    assert lone == ["A.SEG.PNG", "A2.seg.png"]
    assert [note["why"] for note in summary.notes if note["what"] == "unreadable"] == [
        "the .seg.png beside it is 29x20 pixels, its image 30x20 (after its EXIF orientation); "
        "make the map as large as the image"
    ]


def test_maps_follow_their_images_when_these_are_reduced_and_cropped(tmp_path, png, made):
    folder = tmp_path / "photos"
    folder.mkdir()
    classes = np.random.default_rng(0).integers(0, 5, (20, 30), dtype=np.uint8)
    (folder / "a.png").write_bytes(png(np.repeat(50 * classes[:, :, None], 3, axis=2)))
    (folder / "a.seg.png").write_bytes(png(classes))
    small, _ = made(FolderSource(folder), preparation=Preparation(size=10, crop=True))
    assert decode_rgb(small.read(0, "png")).shape == (10, 10, 3)
    assert np.array_equal(decode_map(small.read(0, "seg.png"), 10, 10), classes[1::2, 5:25][:, 1::2])


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path, png, noise, made):
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for i, path in enumerate((folder / "cat" / "a.png", elsewhere / "deep" / "b.png")):
        path.parent.mkdir(parents=True)
        path.write_bytes(png(noise(i)))
    (elsewhere / "deep" / "b.txt").write_text("a dog")
    (folder / "dog").symlink_to(elsewhere)
    (folder / "cat" / "up").symlink_to(folder)
    (elsewhere / "round").symlink_to("deep/..")
    (folder / "lost.png").symlink_to("nowhere.png")
    (folder / "cat" / "a.txt").symlink_to("nowhere.txt")
    source = FolderSource(folder, class_folders=True)
    assert [row.name for row in source.rows(0)] == ["cat/a.png", "dog/deep/b.png", "lost.png"]
    shards, summary = made(source)
    assert [(shards.read(i, "txt"), shards.read(i, "cls")) for i in range(2)] == [(None, b"0"), (b"a dog", b"1")]
    assert [(note["name"], note["what"]) for note in summary.notes] == [("lost.png", "missing file")]


def test_a_folder_that_cannot_be_listed_is_refused(photos, monkeypatch):
    listed = os.scandir

    def denied(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(InputError, match=r"sub cannot be listed .Permission denied"):
        FolderSource(photos)


def test_the_caption_is_the_one_that_training_would_read(photos, made):
    (photos / "a.txt").write_text("not this one")
    shards, _ = made(FolderSource(photos))
    assert read_sample(shards, 0, 1000, Labels()).captions == ["first", "second"]
    assert shards.read(0, "txt") == b"first"


@pytest.mark.parametrize("beside", ["b.png", "b.txt", "b.json", "b.cls", "b.seg.png"])
def test_a_file_beside_an_image_is_part_of_what_is_made(photos, beside):
    before = FolderSource(photos).identity()
    (photos / beside).write_text("something else")
    after = FolderSource(photos).identity()
    assert {key for key in before if before[key] != after[key]} == {"images"}


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        FolderSource(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        FolderSource(tmp_path / "empty")

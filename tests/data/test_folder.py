from __future__ import annotations

import json

import numpy as np
import pytest

from latentdiff.config.errors import InputError
from latentdiff.data.decode import decode_map, decode_rgb
from latentdiff.data.folder import make_shards
from latentdiff.data.shards import open_shards


@pytest.fixture
def photos(tmp_path, png, image):
    folder = tmp_path / "photos"
    (folder / "sub" / ".hidden").mkdir(parents=True)
    (folder / "b.png").write_bytes(png(image(20, 8, 12)))
    (folder / "b.txt").write_text("a caption\n")
    (folder / "b.cls").write_text("3\n")
    (folder / "a.JPG").write_bytes(png(image(10), "JPEG"))
    (folder / "a.json").write_text(json.dumps({"captions": ["first", "second"], "licence": "x"}))
    (folder / "sub" / "c.webp").write_bytes(png(image(30), "WEBP"))
    (folder / "broken.png").write_bytes(b"\x89PNG")
    (folder / "sub" / ".hidden" / "d.png").write_bytes(png(image(40)))
    (folder / "notes.md").write_text("not an image")
    return folder


def test_images_captions_and_labels_arrive_unchanged_and_sorted(photos, tmp_path):
    summary = make_shards(photos, tmp_path / "out")
    shards = open_shards(tmp_path / "out")
    values = [json.loads(shards.read(i, "json")) for i in range(len(shards))]
    assert [v["source"] for v in values] == ["a.JPG", "b.png", "sub/c.webp"]
    assert [shards.read_image(i) for i in range(3)] == [(photos / v["source"]).read_bytes() for v in values]
    assert [shards.read(i, "txt") for i in range(3)] == [b"first", b"a caption", None]
    assert values[0]["captions"] == ["first", "second"]
    assert (values[1]["width"], values[1]["height"]) == (12, 8)
    assert shards.read(1, "cls") == b"3"
    assert (summary.written, summary.shards) == (3, 1)
    assert summary.without_caption == ["sub/c.webp"]
    assert [line.split(":")[0] for line in summary.unreadable] == ["broken.png"]


def test_large_images_are_reduced_and_small_ones_kept(tmp_path, png):
    folder = tmp_path / "photos"
    folder.mkdir()
    large = np.full((60, 90, 3), 77, np.uint8)
    (folder / "large.png").write_bytes(png(large))
    (folder / "small.png").write_bytes(png(large[:20, :30]))
    make_shards(folder, tmp_path / "out", image_size=30)
    shards = open_shards(tmp_path / "out")
    assert decode_rgb(shards.read(0, "jpg")).shape == (30, 45, 3)
    assert np.abs(decode_rgb(shards.read(0, "jpg")).astype(int) - 77).max() <= 1
    assert shards.read(1, "png") == (folder / "small.png").read_bytes()


def test_maps_are_kept_beside_their_images_and_are_no_images(tmp_path, png):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 5, (20, 30), dtype=np.uint8)
    for name in ("a", "b.c"):
        (folder / f"{name}.png").write_bytes(png(np.repeat(50 * classes[:, :, None], 3, axis=2)))
        (folder / f"{name}.seg.png").write_bytes(png(classes))
    (folder / "other.png").write_bytes(png(np.zeros((20, 30, 3), np.uint8)))
    (folder / "other.seg.png").write_bytes(png(classes[:, :29]))
    for name in ("A.SEG.PNG", "A2.seg.png"):
        (folder / name).write_bytes(png(classes))
    summary = make_shards(folder, tmp_path / "out")
    assert summary.lone_maps == ["A.SEG.PNG", "A2.seg.png"]
    shards = open_shards(tmp_path / "out")
    assert [shards.read(i, "seg.png") for i in range(len(shards))] == [png(classes)] * 2
    assert summary.unreadable == [
        "other.png: the .seg.png beside it is 29x20 pixels, its image 30x20 (after its EXIF orientation); "
        "make the map as large as the image"
    ]
    make_shards(folder, tmp_path / "small", image_size=10)
    small = open_shards(tmp_path / "small")
    assert decode_rgb(small.read(0, "jpg")).shape == (10, 15, 3)
    assert np.array_equal(decode_map(small.read(0, "seg.png"), 10, 15), classes[1::2, 1::2])


def test_wrong_folders_are_refused(photos, tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        make_shards(tmp_path / "missing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        make_shards(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InputError, match="inside"):
        make_shards(photos, photos / "out")
    with pytest.raises(InputError, match="not empty"):
        make_shards(photos, photos.parent)
    for name in ("a.JPG", "b.png", "sub/c.webp"):
        (photos / name).unlink()
    with pytest.raises(InputError, match=r"none of the 1 images .* first broken.png"):
        make_shards(photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()

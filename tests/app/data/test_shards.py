"""``latentdiff shards``: making shards from every kind of source, indexing, verifying and describing them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from latentdiff.app.cli import main
from latentdiff.data import shard_names
from latentdiff.data.shards import open_shards


@pytest.fixture
def photos(tmp_path) -> Path:
    """Four images of 20x10 to 20x40 pixels with captions beside them, two in each of two folders, and one broken."""
    folder = tmp_path / "photos"
    for i, name in enumerate(("cat/0", "cat/1", "dog/2", "dog/3")):
        path = folder / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (10 * (i + 1), 20, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG")
        path.write_bytes(file.getvalue())
        path.with_suffix(".txt").write_text(f"this is picture {min(i, 2)}")
    (folder / "cat" / "broken\x1b[2J.jpg").write_bytes(b"<html>")
    return folder


def make(*arguments: object) -> int:
    return main(["shards", "make", *map(str, arguments), "--processes", "1"])


def test_a_folder_becomes_shards_and_what_is_left_out_is_told(photos, tmp_path, capsys):
    dest = tmp_path / "made"
    assert make(photos, dest, "--size", 8, "--crop", "center", "--format", "png", "--samples-per-shard", 3) == 0
    said = capsys.readouterr()
    assert said.out.startswith("4 images in 2 shards, ")
    assert "1 unreadable:\n  cat/broken\\x1b[2J.jpg: neither a JPEG" in said.err
    assert f"all of them: {dest / 'left_out.jsonl'}" in said.err
    shards = open_shards(dest)
    assert shards.sizes().tolist() == [[8, 8]] * 4
    assert shards.read(3, "txt") == b"this is picture 2"
    assert make(photos, dest) == 2
    assert "not empty" in capsys.readouterr().err


def test_every_kind_of_source_is_found(photos, tmp_path):
    images = [{"id": 1, "file_name": "dog/2.jpg"}]
    coco = {"images": images, "annotations": [{"image_id": 1, "caption": "a dog"}]}
    (tmp_path / "captions.json").write_text(json.dumps(coco))
    (tmp_path / "t.csv").write_text("path,words\ndog/3.jpg,a dog\n")
    (tmp_path / "t.tsv").write_text("path\ttext\ndog/3.jpg\ta dog\n")
    (photos / "t.jsonl").write_text(json.dumps({"path": "dog/3.jpg", "text": "a dog"}))
    calls = [
        (photos, "--labels", "folders"),
        (tmp_path / "captions.json", "--images", photos),
        (tmp_path / "t.csv", "--images", photos, "--caption-column", "words"),
        (photos, "--captions", tmp_path / "t.tsv"),
        (photos / "t.jsonl",),
    ]
    samples = []
    for number, (source, *options) in enumerate(calls):
        assert make(source, tmp_path / f"made{number}", *options) == 0
        shards = open_shards(tmp_path / f"made{number}")
        samples.append((len(shards), shards.read(0, "txt"), shards.read(0, "cls")))
    assert samples == [(4, b"this is picture 0", b"0"), *[(1, b"a dog", None)] * 4]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("photos", ("--images", "photos"), "does not go with --images"),
        ("photos", ("--caption-column", "x"), "does not go with --caption-column"),
        ("photos/cat/0.txt", (), "of no known kind"),
        ("t.json", (), "--images FOLDER"),
        ("t.csv", ("--labels", "folders"), "does not go with --labels"),
        ("t.csv", ("--image-column", "picture"), "its columns are 'image', 'caption'"),
        ("t.csv", ("--images", "nowhere"), "nowhere is not a folder"),
        ("nowhere", (), "does not exist"),
        ("hf:some/set", ("--images", "photos"), "does not go with --images"),
        ("hf:saved:val", (), "saved was saved without splits"),
        ("photos", ("--size", "0"), "size: expected at least 1"),
    ],
)
def test_what_does_not_go_together_is_told(photos, tmp_path, monkeypatch, capsys, source, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.json").write_text("{}")
    datasets.Dataset.from_dict({"image": ["x.png"], "caption": ["x"]}).save_to_disk(tmp_path / "saved")
    (tmp_path / "t.csv").write_text("image,caption\nx.png,x\n")
    assert make(source, "made", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_a_destination_inside_the_source_is_refused(photos, capsys):
    assert make(photos, photos / "made") == 2
    assert "name a destination outside" in capsys.readouterr().err


def test_a_full_disk_is_a_message_and_exit_code_1(photos, tmp_path, monkeypatch, capsys):
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("latentdiff.data.making.writer.write_shard", full)
    assert make(photos, tmp_path / "made") == 1
    assert "No space left on device" in capsys.readouterr().err


def test_shards_from_elsewhere_are_indexed_and_then_verified(photos, tmp_path, capsys):
    made = tmp_path / "made"
    make(photos, made, "--samples-per-shard", 2)
    for path in made.glob("index.*"):
        path.unlink()
    assert main(["shards", "verify", str(made)]) == 2
    assert "2 shards have no index" in (said := capsys.readouterr().err)
    assert "only their headers were checked; run 'latentdiff shards index" in said
    assert main(["shards", "index", str(made), "--processes", "1"]) == 0
    assert main(["shards", "verify", str(made)]) == 0
    assert "4 samples in 2 shards: as the index says" in capsys.readouterr().out
    first, second = made / "00000.tar", made / "00001.tar"
    content = bytearray(first.read_bytes())
    content[600] ^= 1
    first.write_bytes(content)
    second.unlink()
    assert main(["shards", "verify", str(made)]) == 2
    said = capsys.readouterr()
    assert "made/00000.tar" in said.out
    assert "made/00001.tar" in said.out
    assert "missing" in said.out
    assert "damaged shards: 2" in said.err


def test_stats_count_sizes_captions_and_classes_and_draw_a_sheet(photos, tmp_path, capsys):
    make(photos, tmp_path / "made", "--labels", "folders")
    (tmp_path / "made" / "index.json").unlink()  # sizes come from the headers then
    assert main(["shards", "stats", str(tmp_path / "made"), "--out", str(tmp_path / "out"), "--images", "3"]) == 0
    assert "10 / 20 / 20" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert found["set"]["samples"] == 4
    assert found["pixels (min / median / max)"]["height"] == [10, 25.0, 40]
    assert found["images by short side"]["below 64"] == 4
    assert found["images by width : height"] == {
        "below 1:2": 0,
        "1:2 to 3:4": 2,
        "3:4 to 4:3": 1,
        "4:3 to 2:1": 0,
        "2:1 and more": 1,
    }
    assert found["captions"]["samples without"] == 0
    assert found["captions"]["samples with one used before"] == 1
    assert found["captions"]["words (min / median / max)"] == [4, 4, 4]
    assert found["samples by class (.cls)"] == {"0": 2, "1": 2, "(none)": 0}
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width == 3 * 144 + 4 * 4
        pixels = np.asarray(sheet)
    assert (pixels[4:148, 4:148] == 255).all(axis=2).mean() == pytest.approx(0.5, abs=0.02)  # the image of 20x10


def test_verifying_a_url_reads_its_shards(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LATENTDIFF_CACHE", str(tmp_path / "user"))
    monkeypatch.setattr(shard_names, "PROTOCOLS", ("file",))
    make(photos, tmp_path / "made", "--samples-per-shard", 2)
    url = f"file://{tmp_path / 'made'}"
    assert main(["shards", "verify", url]) == 0
    assert "4 samples in 2 shards: as the index says" in capsys.readouterr().out
    for name in ("00000.tar", "00001.tar"):
        (tmp_path / "made" / name).unlink()
    assert main(["shards", "verify", url]) == 0  # of the cache
    for path in (tmp_path / "user" / "shards").glob("?" * 64):
        path.unlink()
    assert main(["shards", "verify", url]) == 2
    said = capsys.readouterr()
    assert said.out.count("cannot be fetched") == 2
    assert "damaged shards: 2" in said.err


@pytest.mark.parametrize("verb", [["make", "photos", "made"], ["index", "made"]])
@pytest.mark.parametrize("processes", ["0", "-1", "x"])
def test_processes_are_at_least_one(verb, processes, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["shards", *verb, "--processes", processes])
    assert f"--processes: expected a number of at least 1, got {processes}" in capsys.readouterr().err

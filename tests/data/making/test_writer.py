"""Sources to shards: the same bytes from any number of processes and after any interruption; nothing lost silently."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from latentdiff.config.errors import InputError
from latentdiff.data.making.folder import FolderSource
from latentdiff.data.making.images import Preparation
from latentdiff.data.making.writer import make_shards
from latentdiff.data.shards import open_shards, staged

_HOLD = """
import sys
from pathlib import Path
from latentdiff.data.making.work import work_beside
with work_beside(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def photos(tmp_path, png, noise) -> Path:
    """21 images: 17 to keep, two duplicates of the third, one broken, one small; those with even numbers captioned."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(21):
        pixels = noise(2 if i in (7, 15) else i)[: 4 if i == 11 else None]
        (folder / f"{i:02d}.png").write_bytes(b"GIF89a" if i == 9 else png(pixels))
        if i % 2 == 0:
            (folder / f"{i:02d}.txt").write_text(f"number {i}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def make(photos: Path, dest: Path, **options):
    options = {"samples_per_shard": 3, "preparation": Preparation(size=8, min_size=6), "processes": 1, **options}
    return make_shards(FolderSource(photos), dest, **options)


def test_every_row_is_a_sample_or_listed_with_its_reason(photos, tmp_path):
    summary = make(photos, tmp_path / "out", samples_per_shard=5)
    shards = open_shards(tmp_path / "out")
    assert np.bincount(shards.shard_of()).tolist() == [5, 5, 5, 2]
    assert (summary.samples, summary.shards, summary.resumed) == (17, 4, 0)
    keys = [f"{number:05d}{i:04d}" for number, count in enumerate([5, 5, 5, 2]) for i in range(count)]
    values = [json.loads(shards.read(i, "json")) for i in range(17)]
    assert [v["key"] for v in values] == [shards.key(i).split("/")[1] for i in range(17)] == keys
    left = [(note["name"], note["what"]) for note in summary.notes if note["what"] != "no caption"]
    assert left == [
        ("07.png", "duplicate"),
        ("09.png", "unreadable"),
        ("11.png", "too small"),
        ("15.png", "duplicate"),
    ]
    assert len(shards) + len(left) == len(FolderSource(photos)) == 21
    assert summary.counts() == {"no caption": 6, "duplicate": 2, "unreadable": 1, "too small": 1}
    assert summary.notes[3]["why"] == "the same bytes as the image of sample 2 (from 0); left out"
    listed = (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in listed] == summary.notes
    assert not list(tmp_path.glob(".*"))


def test_the_entries_are_those_of_img2dataset(photos, tmp_path):
    make(photos, tmp_path / "out")
    shards = open_shards(tmp_path / "out")
    assert json.loads(shards.read(0, "json")) == {
        "caption": "number 0",
        "error_message": None,
        "height": 8,
        "key": "000000000",
        "original_height": 16,
        "original_width": 16,
        "sha256": hashlib.sha256((photos / "00.png").read_bytes()).hexdigest(),
        "source": "00.png",
        "status": "success",
        "width": 8,
    }


def test_duplicates_can_be_kept_and_are_told_all_the_same(photos, tmp_path):
    summary = make(photos, tmp_path / "out", keep_duplicates=True)
    assert (summary.samples, summary.counts()["duplicate"]) == (19, 2)
    assert all(note["why"].endswith("written all the same") for note in summary.notes if note["what"] == "duplicate")


def test_text_that_utf8_does_not_have_is_replaced(tmp_path, png, noise):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(png(noise(0)))
    (folder / os.fsdecode(b"caf\xe9.json")).write_text(r'{"captions": ["half \ud800"], "tags": [{"x": "\udc00"}]}')
    make(folder, tmp_path / "out")
    shards = open_shards(tmp_path / "out")
    values = json.loads(shards.read(0, "json"))
    assert (values["source"], values["captions"], values["tags"]) == ("caf?.png", ["half ?"], [{"x": "?"}])
    assert shards.read(0, "txt").decode() == "half \ufffd"


def test_the_number_of_processes_changes_no_byte(photos, tmp_path):
    make(photos, tmp_path / "one")
    seen = []
    make(photos, tmp_path / "three", processes=3, progress=seen.append)
    assert contents(tmp_path / "three") == contents(tmp_path / "one")
    assert seen == list(range(1, 22))


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_making_goes_on_and_no_byte_differs(photos, tmp_path, processes):
    make(photos, tmp_path / "whole")
    resumed = []
    for row in (1, 2, 9, 17, 20):

        def stop(done: int, row: int = row) -> None:
            if done == row:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make(photos, tmp_path / "out", progress=stop, processes=processes)
        assert not (tmp_path / "out").exists()
    summary = make(photos, tmp_path / "out", progress=resumed.append)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert (summary.resumed, resumed[0]) == (15, 20)
    assert not list(tmp_path.glob(".*"))


def test_a_journal_cut_off_at_any_byte_is_taken_up(photos, tmp_path):
    make(photos, tmp_path / "whole")

    def stop(done: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    journal = tmp_path / ".out.making" / "journal.jsonl"
    for cut in (1, 0.6, 0.3, 0.0):
        with pytest.raises(KeyboardInterrupt):
            make(photos, tmp_path / "out", progress=stop)
        text = journal.read_bytes()
        assert text.count(b"\n") == 6
        journal.write_bytes(text[: int(cut * len(text)) - 1])
    make(photos, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_another_command_or_other_images_do_not_go_on_with_it(photos, tmp_path, png, noise):
    def stop(done: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(photos, tmp_path / "out", progress=stop)
    with pytest.raises(InputError, match=r"differs from this one .size was 8, is 4.*remove that folder"):
        make(photos, tmp_path / "out", preparation=Preparation(size=4, min_size=6))
    (photos / "20.txt").write_text("another caption")
    with pytest.raises(InputError, match=r"differs from this one .source's images was"):
        make(photos, tmp_path / "out")


def test_nothing_is_left_behind_where_no_row_gives_a_sample(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a\x1b.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the 1 rows gives a sample, first a\\x1b\.png"):
        make(tmp_path / "photos", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_destination_in_use_is_refused(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("")
    with pytest.raises(InputError, match="not empty"):
        make(photos, tmp_path / "out")
    holding = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path / "other")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holding.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match="another process is making"):
        make(photos, tmp_path / "other")
    holding.kill()
    holding.communicate()
    assert make(photos, tmp_path / "other").samples == 17
    for wrong in ({"samples_per_shard": 0}, {"processes": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            make(photos, tmp_path / "third", **wrong)


@pytest.mark.parametrize("place", ["here", "mounted"])
def test_a_destination_that_cannot_be_replaced_is_refused_before_any_work(photos, tmp_path, monkeypatch, place):
    (tmp_path / place).mkdir()
    dest = tmp_path / place
    if place == "here":
        monkeypatch.chdir(dest)
        dest = Path()
    else:
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == dest)

    def none_yet(row: int) -> None:
        raise AssertionError

    with pytest.raises(InputError, match="the working directory; name a new folder"):
        make(photos, dest, progress=none_yet)
    with pytest.raises(InputError, match="the working directory"), staged(dest):
        raise AssertionError
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([place, "photos"])


def test_a_link_means_the_folder_that_it_leads_to(photos, tmp_path):
    (tmp_path / "there" / "empty").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "there" / "empty")
    (tmp_path / "coming").symlink_to(tmp_path / "there" / "new")
    (tmp_path / "round").symlink_to("round")
    for link, folder in (("link", "empty"), ("coming", "new")):
        make(photos, tmp_path / link)
        assert (tmp_path / link).is_symlink()
        assert len(open_shards(tmp_path / "there" / folder)) == 17
    with pytest.raises(InputError, match="is a link"):
        make(photos, tmp_path / "round")


@pytest.mark.faults
def test_killed_at_random_moments_the_shards_are_the_same(tmp_path, png, noise):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(300):
        (photos / f"{i:03d}.png").write_bytes(png(noise(i).repeat(12, 0).repeat(12, 1)))
    command = "import sys; from latentdiff.app.cli import main; sys.exit(main())"
    options = ["--format", "webp", "--samples-per-shard", "20", "--processes", "2"]
    call = [sys.executable, "-c", command, "shards", "make", str(photos), str(tmp_path / "out"), *options]
    kills = 0
    while not (tmp_path / "out").exists():
        child = subprocess.Popen(call)
        try:
            child.wait(timeout=2.5 + 0.17 * kills)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            kills += 1
    assert kills >= 2
    make_shards(
        FolderSource(photos),
        tmp_path / "whole",
        preparation=Preparation(format="webp"),
        samples_per_shard=20,
    )
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    time.sleep(0.5)
    running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(photos).encode() in _bytes(path)]
    assert running == []


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""

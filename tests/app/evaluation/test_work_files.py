import contextlib
import io
import json
import os
import time

import pytest
import torch
from rich.console import Console

from latentdiff.app.evaluation import work_files
from latentdiff.app.evaluation.work_files import clear, take_up, tidy, watched
from latentdiff.app.ranks import Ranks
from latentdiff.config.errors import InputError
from latentdiff.evaluation.chunks import ChunkFolder
from latentdiff.evaluation.engine import index_chunks

ALONE = Ranks(0, 1, torch.device("cpu"), None)
PROTOCOL = {"seeds": {"base": 0}, "samples": {"chunk": 3, "resolution": (16, 16)}, "metrics": {"frechet": {}}}


def test_the_same_work_is_taken_up_again(tmp_path):
    folder = tmp_path / "run" / "chunks"
    take_up(folder, PROTOCOL, ALONE)
    take_up(folder, json.loads(json.dumps(PROTOCOL)), ALONE)
    assert json.loads((folder / "protocol.json").read_text())["samples"]["resolution"] == [16, 16]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": {"base": 1}}, r"seeds\.base = 0, now it is 1"),
        ({"samples": {"chunk": 4, "resolution": [16, 16]}}, r"samples\.chunk = 3, now it is 4"),
        ({"samples": {"chunk": 3, "resolution": [16, 32]}}, r"samples\.resolution = \[16, 16\], now it is \[16, 32\]"),
        ({"prompts": "x"}, r'prompts = null, now it is "x"'),
    ],
)
def test_other_work_is_refused_and_the_difference_named(tmp_path, changes, message):
    take_up(tmp_path, PROTOCOL, ALONE)
    with pytest.raises(InputError, match=rf"holds the unfinished work of an evaluation with {message}"):
        take_up(tmp_path, PROTOCOL | changes, ALONE)


def test_what_a_killed_process_left_half_written_is_cleared(tmp_path):
    take_up(tmp_path, PROTOCOL, ALONE)
    staged = tmp_path / "images" / ".tmp-000000000-000003.npz-12345678"
    staged.parent.mkdir()
    staged.write_bytes(b"half")
    take_up(tmp_path, PROTOCOL, ALONE)
    assert not staged.exists()


def test_work_without_a_word_of_what_it_is_is_refused(tmp_path):
    """As a removal leaves it that was killed after the protocol went."""
    folder = tmp_path / "chunks"
    take_up(folder / "reference", PROTOCOL, ALONE)
    ChunkFolder(folder / "reference", index_chunks(3, 3)).write(range(0, 3), {})
    take_up(folder, PROTOCOL, ALONE)  # real images are measured before
    ChunkFolder(folder / "images", index_chunks(3, 3)).write(range(0, 3), {})
    (folder / "protocol.json").unlink()
    with pytest.raises(InputError, match=r"chunks' holds work, but no protocol\.json that says of what; remove"):
        take_up(folder, PROTOCOL | {"seeds": {"base": 1}}, ALONE)
    (folder / "reference" / "protocol.json").unlink()
    with pytest.raises(InputError, match=r"reference' holds work"):
        take_up(folder / "reference", PROTOCOL, ALONE)


@pytest.mark.parametrize("removed", range(4))
def test_a_removal_that_is_killed_leaves_nothing_to_take_up(tmp_path, monkeypatch, removed):
    """After any number of its files."""
    take_up(tmp_path / "chunks", PROTOCOL, ALONE)
    ChunkFolder(tmp_path / "chunks" / "images", index_chunks(9, 3)).write(range(0, 3), {})
    left, unlink = [removed], os.unlink

    def until_killed(*names, **options):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        unlink(*names, **options)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(os, "unlink", until_killed)
        clear(tmp_path)
    assert not (tmp_path / "chunks").exists()
    tidy(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_killed_evaluations_left_half_written_is_cleared_and_nothing_else(tmp_path):
    own = [".tmp-results.json-12345678", ".tmp-samples.npz-12345678", "samples/.tmp-000001.png-12345678"]
    other = [".tmp-thesis", "results.json", "samples/000000.png"]
    for name in own + other:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    tidy(tmp_path)
    assert [(tmp_path / name).exists() for name in own + other] == [False] * 3 + [True] * 3


def test_lines_tell_how_far_all_ranks_are_where_there_is_no_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(work_files, "LOOK", 0.01)
    monkeypatch.setattr(work_files, "SAY", 0.0)
    folder = ChunkFolder(tmp_path, index_chunks(7, 3))
    folder.write(range(0, 3), {})
    out = io.StringIO()
    with watched([folder], "images", Console(file=out, width=80), ALONE):
        folder.write(range(3, 6), {})
        while "6 of 7" not in out.getvalue():
            time.sleep(0.01)
    assert "images: 6 of 7, about 0 min left" in out.getvalue()
    assert "7 of 7" not in out.getvalue()

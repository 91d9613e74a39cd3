"""Saves that are killed or that the disk refuses: what stood before stands, whole, and nothing is left lying about."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentdiff import durable
from latentdiff.checkpoint import shelf, store
from latentdiff.training.checkpoint_io import DirectoryCheckpointIO

BEFORE_RENAMES = ("begun", "half written", "inside a file", "written", "flushed", "checked")
POINTS = (*BEFORE_RENAMES, "moved aside", "moved in")


def weights(number: int, size: int = 64) -> dict[str, torch.Tensor]:
    return {"w": torch.full((size, size), float(number)), "ema.w": torch.full((size, size), -float(number))}


def save(path: Path, number: int, size: int = 64) -> str | None:
    """As training does after batch ``number``; what the disk said, if it refused."""
    files = DirectoryCheckpointIO(config=f"batch: {number}\n")
    about = {"kind": "autoencoder", "counters": {"batches_seen": number, "images_seen": 8 * number}}
    checkpoint = {
        "state_dict": weights(number, size),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.full((size, size), number / 2)}}}],
        "global_step": number,
        "pytorch-lightning_version": "2.6.4",
        "latentdiff": {**about, "latent": None, "world_size": 1, "extra": {}},
    }
    files.save_checkpoint(checkpoint, str(path))
    if files.failure is None and path.name == store.LAST:
        shelf.prune(path.parent, keep=2)
    return files.failure


def check(path: Path) -> int:
    """The batch whose state the checkpoint ``path`` holds, in all its files."""
    number = store.verify(path).counters["batches_seen"]
    expected = weights(number)
    assert torch.equal(store.load_weights(path)["w"], expected["w"])
    assert torch.equal(store.load_weights(path, "ema")["ema.w"], expected["ema.w"])
    assert store.load_train_state(path)["global_step"] == number
    assert store.load_config(path) == f"batch: {number}\n"
    return number


def in_child(work: Callable[[], None]) -> int:
    """The exit code of a process that does ``work``; below 0, the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(point: str) -> None:
    """From now on this process is killed when a save passes ``point``."""

    def die(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write_half(tensors: dict, file: Path) -> None:
        file.write_bytes(b"half of it")
        die()

    if point == "inside a file":
        store.save_file = write_half
    durable.passed = lambda passing: die() if passing == point else None


def hidden(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize("point", [*POINTS, "pruning"])
def test_killed_while_last_is_saved(tmp_path: Path, point: str) -> None:
    for number in (2, 4):
        assert save(tmp_path / "last", number) is None
    assert in_child(lambda: (killed_at(point), save(tmp_path / "last", 6))) == -signal.SIGKILL
    newest, faults = shelf.first_whole(shelf.standing(tmp_path))
    assert (check(newest), faults) == (4 if point in (*BEFORE_RENAMES, "moved aside") else 6, [])
    assert check(store.resolve(tmp_path / "last")) == check(newest)
    assert len(hidden(tmp_path)) <= 1
    durable.tidy(tmp_path)
    assert hidden(tmp_path) == []
    assert check(shelf.first_whole(shelf.standing(tmp_path))[0]) in (4, 6)
    assert save(tmp_path / "last", 8) is None
    assert check(tmp_path / "last") == 8
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_best_is_saved(tmp_path: Path, point: str) -> None:
    assert save(tmp_path / "best", 2) is None
    assert in_child(lambda: (killed_at(point), save(tmp_path / "best", 4))) == -signal.SIGKILL
    assert check(store.resolve(tmp_path / "best")) == (4 if point == "moved in" else 2)
    assert [check(path) for path in shelf.standing(tmp_path)] == [4 if point == "moved in" else 2]
    durable.tidy(tmp_path)
    assert os.listdir(tmp_path) == ["best"]
    check(tmp_path / "best")


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_the_first_save(tmp_path: Path, point: str) -> None:
    """Then there is none, or a whole one."""
    assert in_child(lambda: (killed_at(point), save(tmp_path / "last", 2))) == -signal.SIGKILL
    assert [check(path) for path in shelf.standing(tmp_path)] == ([2] if point == "moved in" else [])
    durable.tidy(tmp_path)
    assert hidden(tmp_path) == []


def test_many_kills_leave_one_orphan_at_most(tmp_path: Path) -> None:
    for number, point in enumerate(POINTS, start=1):
        in_child(lambda point=point, number=number: (killed_at(point), save(tmp_path / "last", number)))
        assert len(hidden(tmp_path)) <= 1


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): durable.sha256(path) for path in folder.rglob("*") if path.is_file()}


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """The system then refuses a write in the middle of a file."""
    save(tmp_path / "last", 2)
    before = contents(tmp_path)

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        message = save(tmp_path / "last", 4, size=256)
        assert re.search(rf"File too large.*; 768 KiB needed, .* free at '{tmp_path}/last'", message), message

    assert in_child(limited) == 0
    assert contents(tmp_path) == before


@pytest.mark.parametrize("taken", [0, 1, 1000, 16_000])
@pytest.mark.parametrize("refused", ["model.safetensors", "ema.safetensors", "train_state.pt"])
def test_a_disk_that_is_full_after_some_bytes(tmp_path: Path, monkeypatch, refused: str, taken: int) -> None:
    save(tmp_path / "last", 2)
    before = contents(tmp_path)

    def filling(write: Callable) -> Callable:
        def fill(content: object, file: Path) -> None:
            write(content, file)
            if file.name == refused:
                os.truncate(file, taken)
                raise OSError(28, "No space left on device")

        return fill

    monkeypatch.setattr(store, "save_file", filling(store.save_file))
    monkeypatch.setattr(torch, "save", filling(torch.save))
    assert "No space left on device; 48 KiB needed" in save(tmp_path / "last", 4)
    assert contents(tmp_path) == before


def test_a_disk_that_keeps_something_else_than_was_written(tmp_path: Path, monkeypatch) -> None:
    save(tmp_path / "last", 2)
    before = contents(tmp_path)

    def lose(path: Path) -> None:
        if path.name == "ema.safetensors":
            os.truncate(path, 100)

    monkeypatch.setattr(durable, "flush", lose)
    assert "cannot be read again: checkpoint" in save(tmp_path / "last", 4)
    assert contents(tmp_path) == before


def test_large_checkpoints_are_read_again_by_their_sizes(tmp_path: Path, monkeypatch) -> None:
    hashed = []
    monkeypatch.setattr(store, "REREAD_UP_TO", 1000)
    monkeypatch.setattr(store, "verify", lambda folder, hashes, from_disk: hashed.append(hashes))
    save(tmp_path / "last", 2)
    monkeypatch.setattr(store, "REREAD_UP_TO", 10**9)
    save(tmp_path / "last", 4)
    assert hashed == [False, True]


@pytest.fixture
def open_folder():
    """A folder that every user can reach, on another file system than the temporary files where there is one."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_temporary_files_are_beside_the_checkpoint(open_folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Not where TMPDIR says, which may be another file system: a move from there is a copy over the old file."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    seen = []
    monkeypatch.setattr(durable, "passed", lambda point: seen.append((point, sorted(os.listdir(open_folder)))))
    assert save(open_folder / "last", 2) is None
    assert [name[:10] for name in dict(seen)["written"]] == [".tmp-last-"]
    assert (os.listdir(tmp_path), os.listdir(open_folder)) == ([], ["last"])


def test_a_folder_that_cannot_be_written(open_folder: Path) -> None:
    save(open_folder / "last", 2)
    before = contents(open_folder)
    open_folder.chmod(0o555)

    def unprivileged() -> None:
        if os.getuid() == 0:
            os.setuid(65534)
        message = save(open_folder / "last", 4)
        assert re.search(rf"Permission denied; .* free at '{open_folder}/last'", message), message

    assert in_child(unprivileged) == 0
    assert contents(open_folder) == before

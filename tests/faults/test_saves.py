"""Runs that are killed at named points of a save, and runs on a disk that fills up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from latentdiff.checkpoint import shelf, store

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

TRAIN = Path(__file__).resolve().parents[2] / "train.py"

POINTS = ("half written", "flushed", "moved aside", "moved in", "pruning")

KILLED = """
import os, runpy, signal, sys
from latentdiff import durable
point, left = sys.argv[1], int(sys.argv[2])
def passed(passing):
    global left
    left -= passing == point
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
durable.passed = passed
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""train.py, killed when a save passes a point for the nth time."""

SHORT = ("data.workers=0", "max_batches=20", "validate_every=10")


def arguments(server, run_dir: Path, command: tuple[str, ...]) -> list[str]:
    """Of train.py: what ``server.start`` gives it."""
    paths = {"data": "data", "outputs": "outputs", "first_stages": "first_stages"}
    places = [f"paths.{name}={server.home / folder}" for name, folder in paths.items()]
    return list({line.partition("=")[0]: line for line in (*command, *places, f"run_dir={run_dir}")}.values())


def test_killed_at_points_of_a_save(server, stage_one, same_run, tmp_path: Path) -> None:
    """The third time: while the checkpoint of batch 10 or 15, or the best one, takes the place of another."""
    command = (*stage_one, *SHORT)
    server.done(tmp_path / "whole", command)
    for point in POINTS:
        run_dir = tmp_path / point.replace(" ", "_")
        times = "1" if point == "pruning" else "3"
        line = [sys.executable, "-c", KILLED, point, times, str(TRAIN), *arguments(server, run_dir, command)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        assert subprocess.run(line, env=environment, capture_output=True, check=False).returncode == -9
        newest, faults = shelf.first_whole(shelf.standing(run_dir / "checkpoints"))
        assert (newest is not None, faults) == (True, [])
        server.done(run_dir, command)
        same_run(tmp_path / "whole", run_dir)
        assert [path.name for path in (run_dir / "checkpoints").iterdir() if path.name.startswith(".")] == []


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system with room for two checkpoints of stage one, 0.7 MB each; needs the rights to mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1700k", "tmpfs", place], check=False).returncode:
        pytest.skip("no rights to mount a file system")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_full(server, stage_one, same_run, small_disk: Path, tmp_path: Path) -> None:
    """The checkpoint of batch 15 and the best one fail, that of batch 20 ends the run; with more room it goes on."""
    command = (*stage_one, "data.workers=0")
    server.done(tmp_path / "whole", command)
    process = server.start(small_disk, command)
    assert process.wait() == 1
    said = process.said
    assert "disk almost full: a checkpoint takes about" in said
    assert said.count("No space left on device") >= 3
    assert "error: batch 20: 'last' not saved" in said
    assert "The checkpoint of batch 10 still stands; the run ends here" in said
    assert store.verify(small_disk / "checkpoints" / "last").counters["batches_seen"] == 10
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    server.done(small_disk, command)
    same_run(tmp_path / "whole", small_disk)


def test_two_ranks_leave_a_full_disk_together(server, stage_one, small_disk: Path) -> None:
    processes = server.start_two(small_disk, (*stage_one, "data.workers=0"))
    codes = [process.wait() for process in processes]
    said = processes[0].said
    assert codes[0] == 1, said
    assert codes[1] != 0, said
    assert said.count("error: batch 20: 'last' not saved") == 1
    assert store.verify(small_disk / "checkpoints" / "last").counters["batches_seen"] == 10

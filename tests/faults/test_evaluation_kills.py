"""Evaluations killed at any moment, in one process and in two: the same command gives the same numbers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import latentdiff
from latentdiff.evaluation.chunks import ChunkFolder

pytestmark = pytest.mark.faults
REPOSITORY = Path(__file__).resolve().parents[2]
COUNT, SIZE, KILLS = 41, 4, 6
"""Images, images of a chunk, and kills of each kind."""


@pytest.fixture(scope="module")
def checkpoint(server, stage_two) -> Path:
    run_dir = server.home / "evaluated"
    server.done(run_dir, (*stage_two, "max_batches=5", "data.module.source.val_samples=48"))
    return run_dir


def start(server, checkpoint: Path, run_dir: Path, trainer: str) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, str(REPOSITORY / "evaluate.py"), f"checkpoint={checkpoint}", f"run_dir={run_dir}"),
        *(f"trainer={trainer}", "trainer.precision=32-true", f"num_images={COUNT}", f"batch_size={SIZE}"),
        *("sampler.steps=40", "save_samples=npz", "neighbours=0", f"paths.data={server.home / 'data'}"),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(latentdiff.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        command,
        env=environment,
        cwd=server.home,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def complete(server, checkpoint: Path, run_dir: Path, trainer: str) -> None:
    process = start(server, checkpoint, run_dir, trainer)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said


@pytest.fixture(scope="module")
def whole(server, checkpoint: Path) -> Path:
    run_dir = server.home / "whole"
    complete(server, checkpoint, run_dir, "cpu")
    return run_dir


def chunks(run_dir: Path) -> dict[Path, int]:
    """Every file of the work, with the time at which it was written."""
    return {path: path.stat().st_mtime_ns for path in (run_dir / "chunks").rglob("*.npz")}


def assert_same(whole: Path, other: Path) -> None:
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (whole, other))
    for part in ("results", "controls"):
        assert one[part] == two[part]
    assert one["card"]["observed"] == two["card"]["observed"]
    assert (whole / "samples.npz").read_bytes() == (other / "samples.npz").read_bytes()
    assert not (other / "chunks").exists()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(run_dir: Path, files: int, process: subprocess.Popen[str]) -> None:
    while len(chunks(run_dir)) < files and process.poll() is None:
        time.sleep(0.005)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("trainer", ["cpu", "ddp_cpu"])
def test_kills_of_the_whole_group(server, checkpoint, whole: Path, tmp_path: Path, trainer: str) -> None:
    """Again and again at later moments, then to the end in the other number of processes."""
    moments, before = random.Random(trainer), {}
    for kill in range(KILLS):
        process = start(server, checkpoint, tmp_path, trainer)
        wait_for(tmp_path, len(before) + 1 + kill, process)
        time.sleep(moments.uniform(0, 0.05))
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stdout.read()
        after = chunks(tmp_path)
        assert {path: after[path] for path in before} == before, "nothing is done again"
        before = after
    print(f"{trainer}: killed with {len(before)} chunks done")
    complete(server, checkpoint, tmp_path, "cpu" if trainer == "ddp_cpu" else "ddp_cpu")
    assert_same(whole, tmp_path)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_kill_of_one_rank_ends_the_other(server, checkpoint, whole: Path, tmp_path: Path, rank: int) -> None:
    process = start(server, checkpoint, tmp_path, "ddp_cpu")
    wait_for(tmp_path, 14, process)
    other = children(process.pid)[0]
    os.kill(process.pid if rank == 0 else other, signal.SIGKILL)
    process.wait(timeout=120)
    assert process.returncode != 0
    gone = time.monotonic() + 120
    while Path(f"/proc/{other}").exists() and time.monotonic() < gone:
        time.sleep(0.1)
    assert not Path(f"/proc/{other}").exists()
    assert not (tmp_path / "results.json").exists()
    complete(server, checkpoint, tmp_path, "ddp_cpu")
    assert_same(whole, tmp_path)


def broken(run_dir: Path) -> Iterator[Path]:
    yield from sorted((run_dir / "chunks" / "images").glob("*.npz"))[1:2]


@pytest.mark.parametrize("left", [slice(0), slice(-30)])
def test_a_damaged_chunk_is_named_and_made_again(server, checkpoint, whole: Path, tmp_path: Path, left: slice) -> None:
    process = start(server, checkpoint, tmp_path, "cpu")
    wait_for(tmp_path, 14, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert ChunkFolder(tmp_path / "chunks" / "images", [range(0, 4)]).done() == 4
    (damaged,) = broken(tmp_path)
    damaged.write_bytes(damaged.read_bytes()[left])
    process = start(server, checkpoint, tmp_path, "cpu")
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 2
    assert f"'{damaged}' cannot be read" in said
    damaged.unlink()
    complete(server, checkpoint, tmp_path, "cpu")
    assert_same(whole, tmp_path)

"""A run that is killed at any moment, again and again, ends as the run that nobody touched: not one bit differs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from latentdiff.checkpoint import store

SAVED_EVERY = 5
SHORT = ("max_batches=20", "validate_every=10")


def kill_and_resume(
    server, same_run, command: tuple[str, ...], folder: Path, *, moments: random.Random, kills: int
) -> list[tuple[int, int]]:
    """Kills runs ``kills`` times in all; how many batches each had logged and saved at its kill.

    Kills fall into the first, the second and the last third of the batches in turn: after a batch drawn from the third,
    at a moment drawn from the time of a batch. One that comes after the end of the run does not count. After the last
    third the run is completed and compared with one that nobody touched, and the next begins.
    """
    whole, killed = folder / "whole", folder / "killed"
    seconds = server.done(whole, command)
    batches, at_kill = logged(whole), []
    while len(at_kill) < kills:
        third = len(at_kill) % 3
        goal = moments.randrange(third * batches // 3, (third + 1) * batches // 3)
        process, late = server.start(killed, command), time.monotonic() + 5 * seconds
        while logged(killed) < goal and time.monotonic() < late:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, seconds / batches))
        process.kill()
        if (code := process.wait()) == -signal.SIGKILL:
            at_kill.append((logged(killed), saved(killed)))
            assert logged(killed) >= goal, process.said
        else:
            assert code == 0, process.said
        if third == 2 or code == 0 or len(at_kill) == kills:
            server.done(killed, command)
            same_run(whole, killed)
            shutil.rmtree(killed)
    return at_kill


def logged(run_dir: Path) -> int:
    """Batches of which metrics.jsonl has a whole line."""
    file = run_dir / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return sum('"train/' in line and line.endswith("}\n") for line in text.splitlines(keepends=True))


def saved(run_dir: Path) -> int:
    """Batches seen by the newest valid checkpoint, 0 where there is none."""
    batches = [0]
    for folder in run_dir.glob("checkpoints/*"):
        with contextlib.suppress(store.InputError):
            batches.append(store.verify(folder).counters["batches_seen"])
    return max(batches)


def check(server, same_run, command: tuple[str, ...], folder: Path, *, seed: int, kills: int) -> None:
    command = (*command, f"seed={seed}", f"callbacks.checkpoints.every={SAVED_EVERY}")
    moments = random.Random(f"{next(part for part in command if part.startswith('experiment='))} {seed}")
    at_kill = kill_and_resume(server, same_run, command, folder, moments=moments, kills=kills)
    print(f"seed {seed}: {len(at_kill)} kills at (batches logged, saved) {at_kill}")
    assert len(at_kill) == kills
    assert all(logged - saved <= SAVED_EVERY for logged, saved in at_kill)
    batches = logged(folder / "whole")
    assert any(logged < batches / 2 for logged, _ in at_kill)
    assert sum(saved > 0 for _, saved in at_kill) > kills / 2
    assert any(logged >= 2 * batches // 3 for logged, _ in at_kill)


def test_three_kills(server, same_run, stage_one, tmp_path: Path) -> None:
    check(server, same_run, (*stage_one, *SHORT), tmp_path, seed=0, kills=3)


def test_ctrl_c_saves_the_state(server, stage_one, tmp_path: Path) -> None:
    """Sent to the whole group, as a terminal does: the loader's workers outlive it."""
    run_dir = tmp_path / "run"
    process = server.start(run_dir, (*stage_one, "max_batches=100000"))
    while logged(run_dir) < 2:
        time.sleep(0.02)
    os.killpg(process.number, signal.SIGINT)
    assert process.wait() == 130, process.said
    assert "Traceback" not in process.said
    assert f"the same command with run_dir={run_dir} goes on from there" in process.said
    assert saved(run_dir) == logged(run_dir)


@pytest.mark.faults
@pytest.mark.parametrize("phase", ["saving", "validation", "sampling"])
@pytest.mark.parametrize("batch", [10, 20])
def test_killed_after_a_batch(server, same_run, stage_two, tmp_path: Path, phase: str, batch: int) -> None:
    """In what follows a batch in the middle and the last one: it is done again, ``best`` and grids included."""
    command, whole, killed = (*stage_two, *SHORT), tmp_path / "whole", tmp_path / "killed"
    server.done(whole, command)
    killing = {"signal": "SIGKILL", "phase": phase, "batch": batch, "ranks": [0]}
    assert server.start(killed, command, WITNESS_SIGNAL=json.dumps(killing)).wait() == -signal.SIGKILL
    server.done(killed, command)
    same_run(whole, killed)
    grids = [sorted(path.name for path in run_dir.glob("samples/*")) for run_dir in (whole, killed)]
    assert grids[0] == grids[1] != []


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("stage", "kills"), [("stage_one", [4, 4, 4]), ("stage_two", [4, 4, 5])])
def test_twenty_five_kills(
    server, same_run, request: pytest.FixtureRequest, tmp_path: Path, stage: str, kills: list[int], seed: int
) -> None:
    check(server, same_run, request.getfixturevalue(stage), tmp_path, seed=seed, kills=kills[seed])

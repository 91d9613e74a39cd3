"""A run that is told to stop in training or in validation, by a signal or a limit, goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from latentdiff.app.run.run_lock import alone_in
from latentdiff.checkpoint import store
from latentdiff.training.autoencoder_module import AutoencoderModule
from latentdiff.training.callbacks import interruption
from latentdiff.training.callbacks.metrics_log import MetricsLog
from latentdiff.training.checkpoint_io import DirectoryCheckpointIO

NO_BEST = ("callbacks.checkpoints.monitor=null",)
"""Saves of ``last`` alone, which the tests count. Where ``best`` is compared it is the resumed run's."""


@pytest.fixture(scope="module")
def command(programs) -> tuple[str, ...]:
    """Validates after batches 2, 4, 6 and 8, and saves there before it does."""
    return (*programs.stage_one, "max_batches=8", "callbacks.measures=null", "data.module.source.val_samples=24")


@pytest.fixture(scope="module")
def uninterrupted(programs, command, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole")
    programs.done("train", *command, f"run_dir={run_dir}")
    return run_dir


def assert_same_end(run_dir: Path, other: Path, metrics) -> None:
    assert metrics(run_dir) == metrics(other)
    for name in ("last", "best"):
        one, two = (folder / "checkpoints" / name for folder in (run_dir, other))
        assert store.verify(one).counters == store.verify(two).counters
        for part in ("model", "ema"):
            first, second = store.load_weights(one, part), store.load_weights(two, part)
            assert all(torch.equal(first[name], second[name]) for name in first | second)


def test_stopped_in_validation(programs, command, uninterrupted, metrics, monkeypatch, tmp_path: Path) -> None:
    """The state is that of the boundary, and the resumed run makes the validation that was due there."""
    step = AutoencoderModule.validation_step

    def interrupted(self, batch, batch_index):
        if self.counters.batches_seen == 4 and batch_index == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, batch_index)

    monkeypatch.setattr(AutoencoderModule, "validation_step", interrupted)
    stopped = programs("train", *command, f"run_dir={tmp_path}")
    assert stopped.code == 143, stopped
    assert "stopped by SIGTERM; state saved" in stopped.out
    assert store.verify(tmp_path / "checkpoints" / "last").counters["batches_seen"] == 4
    assert [line["batches_seen"] for line in metrics(tmp_path) if "val/psnr" in line] == [2]
    monkeypatch.undo()
    programs.done("train", *command, f"run_dir={tmp_path}")
    assert_same_end(tmp_path, uninterrupted, metrics)


def test_killed_between_validation_and_its_record_of_the_best(
    programs, command, uninterrupted, metrics, monkeypatch, tmp_path: Path
) -> None:
    """The line of the validation is there, the ``best`` that it found is not."""
    log = MetricsLog.on_validation_end

    def killed(self, trainer, module):
        log(self, trainer, module)
        if module.counters.batches_seen == 6:
            raise RuntimeError("as good as killed")

    monkeypatch.setattr(MetricsLog, "on_validation_end", killed)
    assert programs("train", *command, f"run_dir={tmp_path}").code == 1
    monkeypatch.undo()
    programs.done("train", *command, f"run_dir={tmp_path}")
    assert_same_end(tmp_path, uninterrupted, metrics)


def test_the_time_is_up(programs, command, uninterrupted, metrics, monkeypatch, tmp_path: Path) -> None:
    """A batch takes 10 s of this clock and a save 4 s. After batch 5 and two saves 58 of 70 s are over: another batch
    would leave 2 s, less than 1.5 saves."""
    clock = [0.0]
    step, save = AutoencoderModule.training_step, DirectoryCheckpointIO.save_checkpoint

    def slow_step(self, *arguments):
        clock[0] += 10.0
        return step(self, *arguments)

    def slow_save(self, *arguments, **options):
        clock[0] += 4.0
        save(self, *arguments, **options)

    monkeypatch.setattr(interruption, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(AutoencoderModule, "training_step", slow_step)
    monkeypatch.setattr(DirectoryCheckpointIO, "save_checkpoint", slow_save)
    stopped = programs("train", *command, f"run_dir={tmp_path}", *NO_BEST, "trainer.max_time=00:00:01:10")
    assert stopped.code == 0, stopped
    assert f"trainer.max_time is up at batch 5; state saved; the same command with run_dir={tmp_path}" in stopped.out
    assert clock[0] == 62.0
    monkeypatch.undo()
    programs.done("train", *command, f"run_dir={tmp_path}")
    assert_same_end(tmp_path, uninterrupted, metrics)


def test_a_run_that_has_not_saved_by_half_its_time_measures_a_save(programs, command, monkeypatch, tmp_path) -> None:
    clock, saved_at = [0.0], []
    step, save = AutoencoderModule.training_step, DirectoryCheckpointIO.save_checkpoint

    def slow_step(self, *arguments):
        clock[0] += 10.0
        return step(self, *arguments)

    def slow_save(self, *arguments, **options):
        saved_at.append(clock[0])
        clock[0] += 8.0
        save(self, *arguments, **options)

    monkeypatch.setattr(interruption, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(AutoencoderModule, "training_step", slow_step)
    monkeypatch.setattr(DirectoryCheckpointIO, "save_checkpoint", slow_save)
    rare = ("callbacks.checkpoints.every=100", "validate_every=100", *NO_BEST)
    stopped = programs("train", *command, *rare, f"run_dir={tmp_path}", "trainer.max_time=00:00:01:18")
    assert (stopped.code, saved_at, clock[0]) == (0, [40.0, 58.0], 66.0), stopped


def test_a_time_that_is_none_is_refused(programs, command, tmp_path: Path) -> None:
    refused = programs("train", *command, f"run_dir={tmp_path}", "trainer.max_time=an-hour")
    assert refused.code == 2
    assert "DD:HH:MM:SS" in refused.err


def test_one_process_at_a_time_trains_in_a_run_directory(programs, command, tmp_path: Path) -> None:
    with alone_in(tmp_path):
        refused = programs("train", *command, f"run_dir={tmp_path}")
    assert refused.code == 2
    assert re.fullmatch(rf"error: run_dir: process {os.getpid()} on \S+ works in '{tmp_path}'; wait .*\n", refused.err)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_began_from_another_one_s_checkpoint_goes_on(programs, command, uninterrupted, tmp_path) -> None:
    start = f"resume={uninterrupted / 'checkpoints' / 'batch-00000006'}"
    for batches, began in (
        (7, uninterrupted / "checkpoints" / "batch-00000006"),
        (8, tmp_path / "checkpoints" / "last"),
    ):
        done = programs.done("train", *command, start, f"run_dir={tmp_path}", f"max_batches={batches}")
        assert f"resuming from {began} at batch" in done.out
    refused = programs("train", *command, start.replace("batch-00000006", "best"), f"run_dir={tmp_path}")
    assert refused.code == 2
    assert "holds 'last' of batch 8, which training from" in refused.err


def children(process, *, words: str) -> list[int]:
    """Process ids of the children, and theirs, whose command line has the words; the other rank before the workers."""
    table = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            table[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [process.pid]
    for parent in found:
        found += sorted(pid for pid, its in table.items() if its == parent)
    return [pid for pid in found[1:] if words in (Path("/proc") / str(pid) / "cmdline").read_text()]


def wait_for_lines(process, path: Path, count: int) -> None:
    deadline = time.monotonic() + 200
    while not path.exists() or len(path.read_text().splitlines()) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


LONG = ("max_batches=100000", "validate_every=100000", "callbacks.log.every=1")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("receivers", "number", "code"),
    [("rank 0", signal.SIGTERM, 143), ("rank 1", signal.SIGUSR1, 138), ("group", signal.SIGINT, 130)],
)
def test_two_processes_stop_together(programs, command, tmp_path: Path, receivers: str, number: int, code: int) -> None:
    """Their worker processes outlive the signal."""
    overrides = (*command, *LONG, "trainer=ddp_cpu", "data.workers=2", f"run_dir={tmp_path}")
    process = programs.start("train", *overrides, start_new_session=True)
    wait_for_lines(process, tmp_path / "metrics.jsonl", 3)
    if receivers == "group":
        os.killpg(process.pid, number)
    else:
        first = process.pid if receivers == "rank 0" else children(process, words="train.py")[0]
        os.kill(first, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, (out, err)
    assert out.count("state saved") == 1
    assert "Traceback" not in err
    seen = store.verify(tmp_path / "checkpoints" / "last").counters["batches_seen"]
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["batches_seen"] == seen


@pytest.mark.faults
def test_a_killed_worker_ends_the_run_with_a_message(programs, command, tmp_path: Path) -> None:
    process = programs.start("train", *command, *LONG, "data.workers=2", f"run_dir={tmp_path}")
    wait_for_lines(process, tmp_path / "metrics.jsonl", 3)
    os.kill(children(process, words="train.py")[0], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, (out, err)
    assert "DataLoader worker" in err

"""Whatever the moment, the number of workers and the number of processes: the samples go on in their order."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from latentdiff.checkpoint import store
from latentdiff.data.datamodule import DataModule
from latentdiff.data.sources import ShapesSource

SAMPLES, BATCH = 44, 8
EPOCH = SAMPLES // BATCH  # the rest of an epoch is left out
BATCHES = 2 * EPOCH + 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("data")

    def make(start: int = 0, workers: int = 0, stop: int = BATCHES) -> DataModule:
        source = ShapesSource(root=str(root), image_size=8, train_samples=SAMPLES, val_samples=2)
        numbers = {"global_batch": BATCH, "seed": 3, "max_batches": stop, "num_workers": workers}
        data = DataModule(source=source, image_size=8, **numbers)
        data.prepare_data()
        data.start_batch = start
        return data

    return make


def keys(data: DataModule) -> list[list[str]]:
    return [batch.keys for batch in data.train_dataloader()]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.faults)])
def test_the_loader_goes_on_at_every_batch(data, workers: int) -> None:
    """Of two epochs and a bit; the next resume follows in the same epoch, or at once."""
    whole = keys(data())
    assert len(whole) == BATCHES
    assert len({key for batch in whole[:EPOCH] for key in batch}) == EPOCH * BATCH, "no sample twice in an epoch"
    assert whole[:EPOCH] != whole[EPOCH : 2 * EPOCH]
    for start in range(BATCHES + 1):
        assert keys(data(start, workers)) == whole[start:], start
    for start, then in [(1, 2), (1, 1), (2, EPOCH), (EPOCH - 1, EPOCH + 1)]:
        assert [*keys(data(start, workers, then)), *keys(data(then, workers))] == whole[start:], (start, then)


# --- the programs ----------------------------------------------------------------------------------------------------

SHORT = ("data.module.source.train_samples=44", "max_batches=12", "validate_every=6", "callbacks.checkpoints.every=3")
"""Two epochs of five batches and two batches more."""


def seen(file: Path, ranks: int = 1) -> list[tuple[int, list[str]]]:
    """Batch number and keys of every global batch in the order in which they were trained on."""
    lines = [[json.loads(line) for line in Path(f"{file}.{rank}").read_text().splitlines()] for rank in range(ranks)]
    assert len({len(of_rank) for of_rank in lines}) == 1, "the ranks saw as many batches"
    assert all(len({line["batch"] for line in of_ranks}) == 1 for of_ranks in zip(*lines)), "and the same"
    return [(parts[0]["batch"], [key for part in parts for key in part["keys"]]) for parts in zip(*lines)]


def stopping(phase: str, batch: int, number: str = "SIGTERM", ranks: tuple[int, ...] = (0,)) -> dict[str, str]:
    return {"WITNESS_SIGNAL": json.dumps({"signal": number, "phase": phase, "batch": batch, "ranks": ranks})}


@pytest.mark.faults
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_with_the_same_samples(server, same_run, stage_one, tmp_path: Path, workers: int) -> None:
    """Stopped twice in the first epoch, at its end, right after a resume, and in the next epoch."""
    command = (*stage_one, *SHORT, f"data.workers={workers}")
    server.done(tmp_path / "whole", command, WITNESS_KEYS=str(tmp_path / "whole_keys"))
    for batch in (1, 2, 4, 5, 8):  # the signal comes before the batch is trained on, which is then completed
        process = server.start(
            tmp_path / "run", command, WITNESS_KEYS=str(tmp_path / "keys"), **stopping("training", batch)
        )
        assert process.wait() == 143, process.said
    server.done(tmp_path / "run", command, WITNESS_KEYS=str(tmp_path / "keys"))
    assert seen(tmp_path / "keys") == seen(tmp_path / "whole_keys")
    same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.faults
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_on_another_number_of_processes(server, stage_one, tmp_path: Path, before: int, after: int) -> None:
    """The same samples in the same global batches, also in the middle of an epoch."""
    command = (*stage_one, *SHORT)
    server.done(tmp_path / "whole", command, WITNESS_KEYS=str(tmp_path / "whole_keys"))
    whole = seen(tmp_path / "whole_keys")

    def run(ranks: int, keys: str, **environment: str) -> int:
        watched = {"WITNESS_KEYS": str(tmp_path / keys), **environment}
        if ranks == 1:
            return server.start(tmp_path / "run", command, **watched).wait()
        return max(process.wait() for process in server.start_two(tmp_path / "run", command, **watched))

    assert run(before, "first", **stopping("training", 6)) == 143
    assert run(after, "second") == 0
    assert [*seen(tmp_path / "first", before), *seen(tmp_path / "second", after)] == whole
    assert store.read_manifest(tmp_path / "run" / "checkpoints" / "last").world_size == after


@pytest.mark.faults
def test_processes_that_cannot_share_a_batch_are_refused(server, stage_one, tmp_path: Path) -> None:
    processes = server.start_two(tmp_path / "run", (*stage_one, *SHORT, "global_batch=9"))
    assert [process.wait() for process in processes] == [2, 2], processes[0].said
    assert "9 cannot be split evenly over 2 processes" in processes[0].said


# --- signals ---------------------------------------------------------------------------------------------------------

PHASES = [("training", 4), ("validation", 6), ("sampling", 6), ("saving", 3), ("validation", 12)]
"""And the batches seen when the signal comes; the run has 12."""
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize(("phase", "batch"), PHASES)
def test_a_signal_to_some_of_two_processes(server, same_run, two_whole, tmp_path: Path, phase, batch, ranks) -> None:
    """Every signal once in every phase, from each other set of ranks: all stop after the same batch with the code that
    is documented, and go on from there."""
    command, whole = two_whole
    number = SIGNALS[(PHASES.index((phase, batch)) + len(ranks) + ranks[0]) % 3]
    watched = {"WITNESS_KEYS": str(tmp_path / "keys"), **stopping(phase, batch, number, ranks)}
    processes = server.start_two(tmp_path / "run", command, **watched)
    codes = [process.wait() for process in processes]
    assert codes == [128 + signal.Signals[number], 0], processes[0].said
    assert f"stopped by {number}; state saved" in processes[0].said
    batches = store.verify(tmp_path / "run" / "checkpoints" / "last").counters["batches_seen"]
    assert [number for number, _ in seen(tmp_path / "keys", 2)] == list(range(batches)), "and no batch more on any rank"
    assert batches in (batch, batch + 1)
    resumed = server.start_two(tmp_path / "run", command)
    assert [process.wait() for process in resumed] == [0, 0], resumed[0].said
    same_run(whole, tmp_path / "run")


@pytest.fixture(scope="module")
def two_whole(server, stage_one, tmp_path_factory: pytest.TempPathFactory):
    """The command of two processes, and the run directory of what they do undisturbed."""
    command = (*stage_one, *SHORT, "data.workers=1")
    run_dir = tmp_path_factory.mktemp("two") / "whole"
    processes = server.start_two(run_dir, command)
    assert [process.wait() for process in processes] == [0, 0], processes[0].said
    return command, run_dir

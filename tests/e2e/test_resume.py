"""A run that was stopped and resumed is the run that was never stopped, bit for bit on a CPU."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from latentdiff.checkpoint import store
from latentdiff.training.callbacks.metrics_log import MetricsLog

STAGES = ("stage_one", "stage_two")
BATCHES = 6


@pytest.fixture(scope="module")
def commands(programs, autoencoder: Path) -> dict[str, tuple[str, ...]]:
    """Stage -> its command; validation falls between the batches at which the tests stop."""
    more = (f"max_batches={BATCHES}", "validate_every=4")
    return {
        "stage_one": (*programs.stage_one, *more),
        "stage_two": (*programs.stage_two, *more, f"first_stage.checkpoint={autoencoder}"),
    }


@pytest.fixture(scope="module")
def uninterrupted(programs, commands, tmp_path_factory) -> dict[str, Path]:
    """Stage -> run directory of all batches in one go."""
    folders = {stage: tmp_path_factory.mktemp(stage) for stage in STAGES}
    for stage, folder in folders.items():
        programs.done("train", *commands[stage], f"run_dir={folder}")
    return folders


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch):
    """``signal_at(number, batch)``: this process is sent the signal when it has logged that batch."""
    log = MetricsLog.on_train_batch_end

    def arrange(number: int, batch: int) -> None:
        def log_and_raise(self, trainer, module, *arguments) -> None:
            log(self, trainer, module, *arguments)
            if module.counters.batches_seen == batch:
                signal.raise_signal(number)

        monkeypatch.setattr(MetricsLog, "on_train_batch_end", log_and_raise)

    return arrange


def assert_same_state(a: Path, b: Path) -> None:
    for part in ("model", "ema"):
        first, second = store.load_weights(a, part), store.load_weights(b, part)
        assert first.keys() == second.keys()
        differing = [name for name in first if not torch.equal(first[name], second[name])]
        assert differing == []
    first, second = (store.load_train_state(path)["optimizer_states"] for path in (a, b))
    for one, two in zip(first, second):
        for group, other in zip(one["param_groups"], two["param_groups"]):
            assert group.pop("param_names") == other.pop("param_names")  # assert_close knows no text
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert store.read_manifest(a).counters == store.read_manifest(b).counters


@pytest.mark.parametrize(("stage", "number", "code"), [("stage_one", 2, 130), ("stage_two", 15, 143)])
def test_stopped_by_a_signal_and_resumed(
    programs,
    commands,
    uninterrupted,
    signal_at,
    monkeypatch,
    metrics,
    tmp_path: Path,
    stage: str,
    number: int,
    code: int,
) -> None:
    """Of stage one: with both optimisers, the discriminator and the adversarial term in play before and after."""
    before = signal.getsignal(number)
    signal_at(number, 3)
    stopped = programs("train", *commands[stage], f"run_dir={tmp_path}")
    assert (stopped.code, "Traceback" in stopped.err) == (code, False), stopped
    assert f"stopped by {signal.Signals(number).name}; state saved" in stopped.out
    assert signal.getsignal(number) == before
    last = tmp_path / "checkpoints" / "last"
    assert store.read_manifest(last).counters["batches_seen"] == 3
    assert len(store.load_train_state(last)["optimizer_states"]) == (2 if stage == "stage_one" else 1)
    monkeypatch.undo()
    resumed = programs.done("train", *commands[stage], f"run_dir={tmp_path}")
    assert f"resuming from {last} at batch 3" in resumed.out
    assert metrics(tmp_path) == metrics(uninterrupted[stage])
    assert_same_state(last, uninterrupted[stage] / "checkpoints" / "last")
    again = programs.done("train", *commands[stage], f"run_dir={tmp_path}")
    assert f"already at {BATCHES} of {BATCHES} batches: nothing to do" in again.out


def test_a_resumed_run_takes_back_what_its_checkpoint_has_not_seen(
    programs, commands, uninterrupted, signal_at, monkeypatch, metrics, tmp_path: Path
) -> None:
    """A process killed between two checkpoints has logged more than it saved, its last line perhaps in part."""
    signal_at(signal.SIGTERM, 2)
    assert programs("train", *commands["stage_two"], f"run_dir={tmp_path}").code == 143
    monkeypatch.undo()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"batches_seen": 3, "images_seen": 24, "train/loss": 7.0}\n{"batches_seen": 4, "ima')
    programs.done("train", *commands["stage_two"], f"run_dir={tmp_path}")
    assert metrics(tmp_path) == metrics(uninterrupted["stage_two"])


def test_a_run_killed_while_it_wrote_its_first_checkpoint_starts_afresh(
    programs, commands, metrics, tmp_path: Path
) -> None:
    unfinished = tmp_path / "checkpoints" / ".tmp-last-0123abcd"
    unfinished.mkdir(parents=True)
    (unfinished / "model.safetensors").write_bytes(b"half")
    (tmp_path / "metrics.jsonl").write_text('{"batches_seen": 1, "images_seen": 8, "train/loss": 7.0}\n')
    programs.done("train", *commands["stage_two"], "max_batches=1", f"run_dir={tmp_path}")
    assert [line["batches_seen"] for line in metrics(tmp_path)] == [1, 1]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["best", "last"]


def test_a_copy_of_a_run_goes_on_from_any_of_its_checkpoints(
    programs, commands, uninterrupted, metrics, tmp_path: Path
) -> None:
    best = uninterrupted["stage_two"] / "checkpoints" / "best"
    seen = store.read_manifest(best).counters["batches_seen"]
    further = (f"resume={best}", "max_batches=8", f"run_dir={tmp_path}")
    programs.done("train", *commands["stage_two"], *further)
    assert [line["batches_seen"] for line in metrics(tmp_path) if "train/loss" in line] == list(range(seen + 1, 9))

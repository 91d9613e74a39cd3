import os
import signal

import pytest
import pytorch_lightning as pl

from latentdiff.checkpoint import store
from latentdiff.training.callbacks.checkpoints import Checkpoints
from latentdiff.training.callbacks.interruption import SIGNALS, Interruption, Stopped, stop_pending
from latentdiff.training.checkpoint_io import DirectoryCheckpointIO


class Signals(pl.Callback):
    """Sends this process the signals, one after another, in batch ``at``."""

    def __init__(self, *numbers: int, at: int = 3):
        self.numbers, self.at, self.pending = numbers, at, []

    def on_train_batch_start(self, trainer, module, batch, batch_index):
        if module.counters.batches_seen + 1 == self.at:
            for number in self.numbers:
                os.kill(os.getpid(), number)
            self.pending.append(stop_pending(trainer))


@pytest.fixture
def handlers():
    """The process's signal handlers, put back afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def train(autoencoder_module, batch, fit, tmp_path):
    """Batches up to six, of a module without an adversary that saves every ``every`` batches, or never (None)."""

    def run(*callbacks, every: int | None = 100, batches: int = 6, files: type = DirectoryCheckpointIO):
        saving = [] if every is None else [Checkpoints(run_dir=str(tmp_path), every=every)]
        plugins = [files(config="seed: 0\n")]
        module = autoencoder_module(discriminator=None)
        sequence = [batch(i) for i in range(batches)]
        fit(module, sequence, *saving, *callbacks, Interruption(), val=[batch(9)], plugins=plugins)

    return run


def seen(tmp_path) -> int:
    return store.verify(tmp_path / "checkpoints" / "last").counters["batches_seen"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_after_the_batch_and_leaves(train, handlers, tmp_path, number):
    signals = Signals(number)
    with pytest.raises(Stopped, match=f"^stopped by {number.name}; state saved$") as stopped:
        train(signals)
    assert (stopped.value.code, seen(tmp_path), signals.pending) == (128 + number, 3, [True])
    assert {n: signal.getsignal(n) for n in handlers} == handlers


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_the_first_signal_counts(train, handlers, tmp_path, numbers):
    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        train(Signals(*numbers))
    assert seen(tmp_path) == 3


def test_a_second_ctrl_c_interrupts_at_once(train, handlers, tmp_path):
    """Lightning turns the interruption into an exit."""
    with pytest.raises(SystemExit) as left:
        train(Signals(signal.SIGINT, signal.SIGINT))
    assert isinstance(left.value.__context__, KeyboardInterrupt)
    assert not (tmp_path / "checkpoints" / "last").exists()


def test_a_save_is_not_interrupted(train, handlers, tmp_path):
    class Impatient(DirectoryCheckpointIO):
        def save_checkpoint(self, *arguments, **options):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            super().save_checkpoint(*arguments, **options)

    with pytest.raises(Stopped, match="stopped by SIGINT"):
        train(every=2, files=Impatient)
    assert seen(tmp_path) == 2
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last"]


def test_without_checkpoints_nothing_is_said_to_be_saved(train, handlers):
    with pytest.raises(Stopped, match="nothing saved"):
        train(Signals(signal.SIGTERM), every=None)


def test_signals_are_given_back_at_the_end(train, handlers):
    train(batches=1)
    assert {n: signal.getsignal(n) for n in handlers} == handlers


SCONTROL = """#!/bin/sh
echo "$@" >> "{calls}"
exit {code}
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """``slurm(code, **environment)``: a job with a ``scontrol`` that notes its calls; returns what reads them."""

    def arrange(code: int = 0, **environment: str):
        calls = tmp_path / "calls"
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "scontrol").write_text(SCONTROL.format(calls=calls, code=code))
        (tmp_path / "bin" / "scontrol").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return lambda: calls.read_text().splitlines() if calls.exists() else []

    return arrange


ARRAY = {"SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "5"}
UNDER_SRUN = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
"""With these Lightning sees SLURM too, and would install handlers of its own."""


@pytest.mark.parametrize(
    ("environment", "call"),
    [
        ({"SLURM_JOB_ID": "77"}, "requeue 77"),
        (ARRAY, "requeue 70_5"),
        ({"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", **UNDER_SRUN}, "requeue 77"),
    ],
    ids=["job", "array", "srun"],
)
def test_sigusr1_requeues_a_slurm_job_once(train, handlers, slurm, tmp_path, environment, call):
    calls = slurm(**environment)
    with pytest.raises(Stopped) as stopped:
        train(Signals(signal.SIGUSR1, signal.SIGUSR1))
    assert (stopped.value.code, calls(), seen(tmp_path)) == (138, [call], 3)
    assert not list(tmp_path.rglob("hpc_ckpt*")), "Lightning's own checkpoint, which it would resume from"


def test_other_signals_and_other_machines_requeue_nothing(train, handlers, slurm, monkeypatch):
    calls = slurm(SLURM_JOB_ID="77")
    with pytest.raises(Stopped):
        train(Signals(signal.SIGTERM))
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(Stopped):
        train(Signals(signal.SIGUSR1))
    assert calls() == []


def test_a_job_that_slurm_does_not_requeue_has_saved_and_says_so(train, handlers, slurm, tmp_path, caplog):
    calls = slurm(code=1, SLURM_JOB_ID="77")
    with pytest.raises(Stopped):
        train(Signals(signal.SIGUSR1))
    assert (calls(), seen(tmp_path)) == (["requeue 77"], 3)
    assert "SLURM job 77 was not requeued" in caplog.text


def test_a_second_ctrl_c_interrupts_after_best_was_saved(autoencoder_module, batch, fit, handlers, tmp_path):
    """The batch after it may be long."""
    at = Signals(signal.SIGINT, signal.SIGINT, at=3)
    saving = Checkpoints(run_dir=str(tmp_path), every=100, monitor="val/psnr", maximize=True)
    plugins, batches = [DirectoryCheckpointIO(config="")], [batch(i) for i in range(5)]
    module = autoencoder_module(discriminator=None)
    with pytest.raises(SystemExit):
        fit(module, batches, saving, at, Interruption(), val=[batch(9)], val_check_interval=2, plugins=plugins)
    assert store.verify(tmp_path / "checkpoints" / "best").counters["batches_seen"] == 2
    assert not (tmp_path / "checkpoints" / "last").exists()

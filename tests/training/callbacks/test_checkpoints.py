import os
import signal

import pytest
import pytorch_lightning as pl
import torch

from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError
from latentdiff.training.callbacks.checkpoints import Checkpoints, Stopped
from latentdiff.training.callbacks.metrics_log import NonFiniteError
from latentdiff.training.checkpoint_io import DirectoryCheckpointIO


class Scores(pl.Callback):
    """Logs ``val/score``: the next value at each validation."""

    def __init__(self, *values: float):
        self.values = list(values)

    def on_validation_epoch_end(self, trainer, module):
        module.log("val/score", self.values.pop(0))


class Signals(pl.Callback):
    """Sends this process ``number`` after batch ``at``, ``times`` times."""

    def __init__(self, number: int, *, at: int, times: int = 1):
        self.number, self.at, self.times = number, at, times

    def on_train_batch_start(self, trainer, module, batch, batch_index):
        if module.counters.batches_seen + 1 == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


@pytest.fixture
def handlers():
    """The process's signal handlers, put back afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def train(autoencoder_module, batch, fit, tmp_path):
    def run(*others, batches=4, module=None, start=0, **options):
        module = module or autoencoder_module(discriminator=None)
        trainer_options = {k: options.pop(k) for k in ("val_check_interval", "resume") if k in options}
        saving = Checkpoints(run_dir=str(tmp_path), **options)
        plugins = [DirectoryCheckpointIO(config="seed: 0\n")]
        sequence = [batch(i) for i in range(start, batches)]
        fit(module, sequence, *others, saving, val=[batch(9)], plugins=plugins, **trainer_options)
        return module

    return run


@pytest.fixture
def manifest(tmp_path):
    return lambda name: store.read_manifest(tmp_path / "checkpoints" / name)


class Saves(pl.Callback):
    def __init__(self):
        self.at = []

    def on_save_checkpoint(self, trainer, module, checkpoint):
        self.at.append(module.counters.batches_seen)


def test_saves_at_intervals_and_once_at_the_end(train, manifest):
    saves = Saves()
    train(saves, batches=5, every=2)
    assert saves.at == [2, 4, 5]
    assert manifest("last").counters["batches_seen"] == 5
    saves = Saves()
    train(saves, batches=4, every=2)
    assert saves.at == [2, 4]


@pytest.mark.parametrize(
    ("maximize", "scores", "kept"),
    [
        (True, (1.0, 3.0, 2.0, 3.0), 2),
        (False, (3.0, 1.0, 2.0, 1.0), 2),
        (True, (1.0, float("nan"), 2.0, float("inf")), 3),
        (False, (float("nan"), 2.0, float("nan"), float("-inf")), 2),
    ],
)
def test_best_is_replaced_only_by_better(train, manifest, maximize, scores, kept):
    """Equal is not better, and what is not finite is never good."""
    train(Scores(*scores), every=100, monitor="val/score", maximize=maximize, val_check_interval=1)
    best = manifest("best")
    assert best.counters["batches_seen"] == kept
    assert best.extra["val/score"] == scores[kept - 1]


def test_best_of_an_earlier_run_must_be_beaten(train, autoencoder_module, manifest, tmp_path):
    options = {"every": 100, "monitor": "val/score", "maximize": True, "val_check_interval": 1}
    train(Scores(5.0, 1.0), batches=2, **options)
    resumed = autoencoder_module(discriminator=None)
    resume = str(tmp_path / "checkpoints/last")
    train(Scores(4.0, 3.0), batches=4, module=resumed, start=2, resume=resume, **options)
    assert manifest("best").counters["batches_seen"] == 1
    assert manifest("best").extra["val/score"] == 5.0


def test_values_in_a_manifest_are_those_of_its_weights(train, manifest, tmp_path):
    """``last`` of batch 2 is saved before the validation of batch 2, that at the end after it."""
    seen = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_index):
            if module.counters.batches_seen == 3:
                seen.append(manifest("last").extra)

    train(Look(), Scores(1.0, 2.0), every=3, val_check_interval=2)
    assert "val/score" not in seen[0]
    assert manifest("last").counters["batches_seen"] == 4
    assert manifest("last").extra["val/score"] == 2.0


def test_an_unknown_monitor_is_named(train):
    with pytest.raises(InputError, match=r"monitor: 'val/pnsr' is not logged; validation logs .*val/psnr"):
        train(every=100, monitor="val/pnsr", val_check_interval=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_after_the_batch_and_leaves(train, manifest, handlers, number):
    module_at = []
    with pytest.raises(Stopped, match=f"stopped by {number.name}; state saved") as stopped:
        train(Signals(number, at=3), Saves(), every=100, batches=6)
    module_at.append(manifest("last").counters["batches_seen"])
    assert module_at == [3]
    assert stopped.value.signal == number
    assert {n: signal.getsignal(n) for n in handlers} == handlers


def test_a_second_ctrl_c_interrupts_at_once(train, handlers, tmp_path):
    """Lightning turns the interruption into an exit."""
    with pytest.raises(SystemExit) as left:
        train(Signals(signal.SIGINT, at=2, times=2), every=100)
    assert isinstance(left.value.__context__, KeyboardInterrupt)
    assert not (tmp_path / "checkpoints").exists()


def test_signals_are_given_back_at_the_end(train, handlers):
    train(every=100, batches=1)
    assert {n: signal.getsignal(n) for n in handlers} == handlers


def test_ruined_weights_never_replace_a_checkpoint(train, manifest, autoencoder_module):
    module = autoencoder_module(discriminator=None)

    class Ruin(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
            if module.counters.batches_seen == 4:
                with torch.no_grad():
                    module.autoencoder.decoder.conv_out.bias[0] = float("nan")

    with pytest.raises(NonFiniteError, match="weights not finite at batch 4: the checkpoint is not written"):
        train(Ruin(), module=module, every=2, batches=6)
    assert manifest("last").counters["batches_seen"] == 2


def test_seconds_add_up_over_runs(train, manifest, autoencoder_module, tmp_path):
    train(batches=1, every=100)
    first = manifest("last").extra["seconds"]
    folder = tmp_path / "checkpoints/last"
    about = store.read_manifest(folder)
    text = (folder / store.MANIFEST).read_text()
    (folder / store.MANIFEST).write_text(text.replace(f'"seconds": {first}', '"seconds": 1000.0'))
    assert about.extra.keys() == {"seconds"}
    train(batches=2, start=1, every=100, module=autoencoder_module(discriminator=None), resume=str(folder))
    assert 1000.0 <= manifest("last").extra["seconds"] < 1600.0


def test_latents_are_measured_before_saving(train, tmp_path):
    train(every=100, batches=1)
    weights = store.load_weights(tmp_path / "checkpoints/last")
    assert weights["latent_mean"].abs().min() > 0
    assert (weights["latent_std"] - 1).abs().min() > 0

import dataclasses
import re
import shutil

import pytest
import pytorch_lightning as pl
import torch

from latentdiff import durable
from latentdiff.checkpoint import store
from latentdiff.checkpoint.manifest import WEIGHTS
from latentdiff.config.errors import InputError
from latentdiff.training.callbacks import checkpoints
from latentdiff.training.callbacks.checkpoints import Checkpoints, SaveError
from latentdiff.training.callbacks.metrics_log import NonFiniteError
from latentdiff.training.checkpoint_io import DirectoryCheckpointIO


class Scores(pl.Callback):
    """Logs ``val/score``: the next value at each validation."""

    def __init__(self, *values: float):
        self.values = list(values)

    def on_validation_epoch_end(self, trainer, module):
        module.log("val/score", self.values.pop(0))


@pytest.fixture
def train(autoencoder_module, batch, fit, tmp_path):
    def run(*others, batches=4, module=None, start=0, data=None, **options):
        module = module or autoencoder_module(discriminator=None)
        trainer_options = {k: options.pop(k) for k in ("val_check_interval", "resume") if k in options}
        saving = Checkpoints(run_dir=str(tmp_path), **options)
        plugins = [DirectoryCheckpointIO(config="seed: 0\n", data=data)]
        sequence = [batch(i) for i in range(start, batches)]
        fit(module, sequence, *others, saving, val=[batch(9)], plugins=plugins, **trainer_options)
        return module

    return run


@pytest.fixture
def manifest(tmp_path):
    def read(name):
        return store.read_manifest(read.folder / name)

    read.folder = tmp_path / "checkpoints"
    return read


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
    folder = tmp_path / "checkpoints/last"
    about = store.read_manifest(folder)
    assert about.extra.keys() == {"seconds"}
    (folder / store.MANIFEST).write_text(dataclasses.replace(about, extra={"seconds": 1000.0}).text)
    train(batches=2, start=1, every=100, module=autoencoder_module(discriminator=None), resume=str(folder))
    assert 1000.0 <= manifest("last").extra["seconds"] < 1600.0


def test_latents_are_measured_before_saving(train, tmp_path):
    train(every=100, batches=1)
    weights = store.load_weights(tmp_path / "checkpoints/last")
    assert weights["latent_mean"].abs().min() > 0
    assert (weights["latent_std"] - 1).abs().min() > 0


@pytest.mark.parametrize(("keep", "kept"), [(1, ["last"]), (2, ["batch-00000004", "last"])])
def test_what_was_last_is_kept(train, tmp_path, keep, kept):
    train(every=2, batches=5, keep=keep)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == kept


def test_what_cannot_be_removed_stays(train, manifest, monkeypatch, caplog):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(durable, "remove", refuse)
    train(every=1, batches=4)
    assert store.verify(manifest.folder / "last").counters["batches_seen"] == 4
    assert len(store.kept(manifest.folder)) == 3
    assert "checkpoints' left as it is: [Errno 13] Permission denied" in caplog.text


def test_save_now_saves_once(train, manifest):
    class Now(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
            saving = next(c for c in trainer.callbacks if isinstance(c, Checkpoints))
            if module.counters.batches_seen == 2:
                saving.save_now(trainer, module)
                saving.save_now(trainer, module)

    saves = Saves()
    train(saves, Now(), every=100, batches=3)
    assert saves.at == [2, 3]


@pytest.fixture
def disk(monkeypatch):
    """Refuses the saves whose numbers, counted from 1, are in the set that it is given."""
    write = store.save_file

    def refuse(numbers):
        begun = []

        def fill(tensors, file):
            if file.name == "model.safetensors":
                begun.append(file)
            if len(begun) in numbers:
                raise OSError(28, "No space left on device")
            write(tensors, file)

        monkeypatch.setattr(store, "save_file", fill)

    return refuse


def test_a_run_bears_with_two_saves_that_fail(train, manifest, disk, caplog):
    disk({2, 3, 5, 6})
    seen = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_index):
            if module.counters.batches_seen:
                seen.append(manifest("last").counters["batches_seen"])

    train(Look(), every=1, batches=7)
    assert seen == [1, 1, 1, 4, 4, 4]
    assert manifest("last").counters["batches_seen"] == 7
    said = [record.getMessage() for record in caplog.records if "not saved" in record.getMessage()]
    assert len(said) == 4
    pattern = (
        r"batch 2: 'last' not saved: No space left on device; .*B needed, .*B free at '.*last'\. The checkpoint of "
    )
    assert re.match(pattern + r"batch 1 still stands; training goes on \(1 in a row failed, 3 end the run\)", said[0])
    assert "(2 in a row failed" in said[1]
    assert "(1 in a row failed" in said[2]


def test_the_third_in_a_row_ends_the_run(train, manifest, disk):
    disk({2, 3, 4, 5})
    with pytest.raises(
        SaveError, match=r"batch 4: 'last' not saved: No space .* batch 1 still stands; the run ends here"
    ):
        train(every=1, batches=9)
    assert manifest("last").counters["batches_seen"] == 1
    store.verify(manifest.folder / "last")


def test_a_save_that_fails_at_the_end_fails_the_run(train, manifest, disk):
    disk({2})
    with pytest.raises(SaveError, match="batch 5: 'last' not saved"):
        train(every=3, batches=5)
    assert manifest("last").counters["batches_seen"] == 3


def test_a_best_that_could_not_be_saved_has_still_to_be_beaten(train, manifest, disk):
    """Value 3 at batch 2 is refused: 2 at batch 3 is then the best that there is."""
    disk({2})
    scores = Scores(1.0, 3.0, 2.0)
    train(scores, batches=3, every=100, monitor="val/score", maximize=True, val_check_interval=1)
    assert manifest("best").counters["batches_seen"] == 3


@pytest.mark.parametrize("file", [store.MANIFEST, store.CONFIG])
def test_a_damaged_best_is_replaced_and_said(train, autoencoder_module, manifest, tmp_path, caplog, file):
    options = {"every": 100, "monitor": "val/score", "maximize": True, "val_check_interval": 1}
    train(Scores(5.0), batches=1, **options)
    (manifest.folder / "best" / file).write_text("{")
    module = autoencoder_module(discriminator=None)
    train(Scores(4.0), batches=2, start=1, module=module, resume=str(manifest.folder / "last"), **options)
    assert manifest("best").extra["val/score"] == 4.0
    assert "the next validation replaces it" in caplog.text


def test_a_best_of_other_samples_need_not_be_beaten(train, autoencoder_module, manifest, caplog):
    options = {"every": 100, "monitor": "val/score", "maximize": True, "val_check_interval": 1}
    train(Scores(5.0), batches=1, data={"fingerprint": "a"}, **options)
    module = autoencoder_module(discriminator=None)
    resume = str(manifest.folder / "last")
    train(Scores(4.0), batches=2, start=1, module=module, resume=resume, data={"fingerprint": "b"}, **options)
    assert manifest("best").extra["val/score"] == 4.0
    assert "best' is of other training samples; the next validation replaces it" in caplog.text


def test_checkpoints_that_something_else_removed_are_missed(train, manifest, caplog):
    class Remove(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_index):
            if module.counters.batches_seen == 2:
                shutil.rmtree(manifest.folder)

    train(Remove(), every=2, batches=4)
    assert "checkpoints/last' of batch 2 is gone: something else removed it" in caplog.text
    assert store.verify(manifest.folder / "last").counters["batches_seen"] == 4


def test_litter_of_a_killed_run_is_cleared_at_the_start(train, manifest):
    (manifest.folder / ".tmp-last-01234567").mkdir(parents=True)
    (manifest.folder / ".tmp-best-01234567").mkdir()
    train(every=100, batches=1)
    assert [path.name for path in manifest.folder.iterdir()] == ["last"]


@pytest.mark.parametrize(("free", "warns"), [(10, True), (10**9, False)])
def test_a_disk_that_is_almost_full_is_mentioned_at_the_start(train, monkeypatch, caplog, free, warns):
    monkeypatch.setattr(checkpoints, "free_bytes", lambda path: free)
    train(every=100, batches=1)
    assert ("disk almost full: a checkpoint takes about" in caplog.text) == warns


def test_the_estimate_is_near_the_size(train, manifest, monkeypatch, caplog):
    """Of weights, averages and Adam's moments; the rest of a checkpoint is text and tables."""
    sizes = []
    monkeypatch.setattr(checkpoints, "free_bytes", lambda path: 10)
    monkeypatch.setattr(checkpoints, "readable", lambda count: sizes.append(count) or "")
    train(every=100, batches=1)
    state = store.load_train_state(manifest.folder / "last")
    tensors = checkpoints.tensor_bytes([state, *(store.load_weights(manifest.folder / "last", p) for p in WEIGHTS)])
    assert 0.98 * tensors < sizes[0] <= tensors

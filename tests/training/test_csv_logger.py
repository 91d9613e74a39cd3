import csv
import json

import pytest
import pytorch_lightning as pl

from latentdiff.training.callbacks.interruption import Stopped
from latentdiff.training.callbacks.metrics_log import MetricsLog
from latentdiff.training.csv_logger import CSVLogger


class Stop(pl.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        if module.counters.batches_seen == 2:
            raise Stopped("stopped", 143)


class Rows(pl.Callback):
    """How many the file has after each batch."""

    def __init__(self, file):
        self.file, self.counts = file, []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        self.counts.append(len(list(csv.DictReader(self.file.open()))))


@pytest.fixture
def logger(tmp_path):
    logger = CSVLogger(save_dir=str(tmp_path), name="csv")
    logger.save_plainly = logger.experiment.save
    return logger


def refuse():
    raise OSError(28, "No space left on device")


def test_each_line_is_there_while_training_goes_on(autoencoder_module, batch, fit, logger, tmp_path):
    log, rows = MetricsLog(run_dir=str(tmp_path), every=1), Rows(tmp_path / "csv" / "version_0" / "metrics.csv")
    fit(autoencoder_module(), [batch(i) for i in range(3)], log, rows, logger=logger)
    assert rows.counts == [1, 2, 3]


def test_a_full_disk_ends_no_run(autoencoder_module, batch, fit, logger, tmp_path, caplog):
    logger.experiment.save = refuse
    log = MetricsLog(run_dir=str(tmp_path), every=1)
    fit(autoencoder_module(), [batch(i) for i in range(2)], log, logger=logger)
    assert caplog.text.count("No space left on device") == 1
    logger.experiment.save = logger.save_plainly
    logger.save()
    with open(tmp_path / "csv" / "version_0" / "metrics.csv") as file:
        assert [line["step"] for line in csv.DictReader(file)] == ["1", "2"]


def test_nor_does_it_hide_that_the_run_was_stopped(autoencoder_module, batch, fit, logger, tmp_path):
    logger.experiment.save = refuse
    log = MetricsLog(run_dir=str(tmp_path), every=1)
    with pytest.raises(Stopped):
        fit(autoencoder_module(), [batch(i) for i in range(3)], log, Stop(), logger=logger)


def test_a_resumed_run_goes_on_in_the_same_file(autoencoder_module, batch, fit, tmp_path):
    """Also with a line that a killed process had not written, and without one that comes again."""
    fit(autoencoder_module(), [batch(i) for i in range(3)], MetricsLog(run_dir=str(tmp_path), every=1))
    module = autoencoder_module()
    module.counters.batches_seen, module.counters.images_seen = 2, 8
    folder = tmp_path / "csv" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("images_seen,step\n4,1\n12,3\n")
    own = CSVLogger(save_dir=str(tmp_path), name="csv", version=0)
    fit(module, [batch(i) for i in range(2, 4)], MetricsLog(run_dir=str(tmp_path), every=1), logger=own)
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [float(row["train/nll"]) for row in rows] == [line["train/nll"] for line in lines]

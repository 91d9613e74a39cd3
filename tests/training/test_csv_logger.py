import csv

import pytest
import pytorch_lightning as pl

from latentdiff.training.callbacks.interruption import Stopped
from latentdiff.training.callbacks.metrics_log import MetricsLog
from latentdiff.training.csv_logger import CSVLogger


class Stop(pl.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        if module.counters.batches_seen == 2:
            raise Stopped("stopped", 143)


@pytest.fixture
def logger(tmp_path):
    logger = CSVLogger(save_dir=str(tmp_path), name="csv")
    logger.save_plainly = logger.experiment.save
    return logger


def refuse():
    raise OSError(28, "No space left on device")


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

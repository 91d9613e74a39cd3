import itertools
import json
import re

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger

from latentdiff import durable
from latentdiff.config.errors import RunError
from latentdiff.training.callbacks import echo
from latentdiff.training.callbacks.interruption import Stopped
from latentdiff.training.callbacks.metrics_log import MetricsLog, NonFiniteError


def refuse(constant: str):
    raise AssertionError(f"{constant} is no JSON")


def lines(folder):
    return [json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Recorder(Logger):
    name, version = "recorder", 0

    def __init__(self):
        super().__init__()
        self.calls = []

    def log_metrics(self, metrics, step=None):
        self.calls.append((step, metrics))

    def log_hyperparams(self, *args):
        pass


def test_one_line_per_interval_and_per_validation(autoencoder_module, batch, fit, tmp_path):
    recorder = Recorder()
    fit(
        autoencoder_module(),
        [batch(i, size=6, rows=slice(0, 3)) for i in range(6)],
        MetricsLog(run_dir=str(tmp_path), every=2),
        val=[batch(9)],
        val_check_interval=3,
        logger=recorder,
    )
    found = lines(tmp_path)
    assert [line["batches_seen"] for line in found] == [2, 3, 4, 6, 6]
    assert [line["images_seen"] for line in found] == [12, 18, 24, 36, 36]
    for line in found:
        names = set(line) - {"batches_seen", "images_seen"}
        if "val/psnr" in line:
            assert names == {"val/psnr", "val/kl"}
        else:
            assert {"train/nll", "train/kl", "train/lr", "train/grad_norm", "images_per_second"} <= names
            assert line["images_per_second"] > 0
            assert 0.05 < line["memory_gib"] < 64
            assert 0 <= line["data_wait"] <= 1
    assert [step for step, _ in recorder.calls] == [2, 3, 4, 6, 6]
    for line, (_, values) in zip(found, recorder.calls, strict=True):
        assert values == {name: value for name, value in line.items() if name != "batches_seen"}


def test_values_are_the_modules(diffusion_module, batch, fit, validate, tmp_path):
    module = diffusion_module()
    module.schedule = lambda number: [0.5, 0.25][number]
    fit(
        module,
        [batch(i) for i in range(2)],
        MetricsLog(run_dir=str(tmp_path), every=1),
        val=[batch(9)],
        val_check_interval=2,
    )
    *train, val = lines(tmp_path)
    assert [line["train/lr"] for line in train] == pytest.approx([5e-4, 2.5e-4])
    assert val["val/loss"] == pytest.approx(validate(module, [batch(9)])["val/loss"])


def test_a_resumed_run_goes_on_from_its_checkpoints_line(autoencoder_module, batch, fit, tmp_path):
    """The lines of batches that are trained again are dropped, and so is one that was never finished."""
    module, log = autoencoder_module(), lambda: MetricsLog(run_dir=str(tmp_path), every=1)
    fit(module, [batch(i) for i in range(3)], log())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"batches_seen": 4, "train/n')
    module.counters.batches_seen = 2
    fit(module, [batch(2)], log())
    assert [line["batches_seen"] for line in lines(tmp_path)] == [1, 2, 3]


def test_the_last_batch_has_a_line_wherever_the_interval_stands(autoencoder_module, batch, fit, tmp_path):
    fit(autoencoder_module(), [batch(i) for i in range(5)], MetricsLog(run_dir=str(tmp_path), every=3))
    assert [line["batches_seen"] for line in lines(tmp_path)] == [3, 5]


@pytest.mark.parametrize("ruin", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_stops_the_run_and_is_recorded(autoencoder_module, batch, fit, tmp_path, ruin):
    class Ruin(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
            module.log("train/strange", ruin, logger=False)

    log = MetricsLog(run_dir=str(tmp_path), every=2)
    with pytest.raises(NonFiniteError, match=r"train/strange not finite at batch 2: .*optim\.lr"):
        fit(autoencoder_module(), [batch(i) for i in range(4)], Ruin(), log)
    (line,) = lines(tmp_path)
    assert line["batches_seen"] == 2
    assert line["train/strange"] is None
    assert line["train/lr"] == pytest.approx(1e-3)


def test_a_validation_that_is_not_finite_stops_the_run(diffusion_module, batch, fit, tmp_path):
    module = diffusion_module()
    with torch.no_grad():
        module.ema.model["denoiser"].backbone.out[2].bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"val/loss, val/loss_v, .* not finite at batch 1"):
        fit(module, [batch(0), batch(1)], MetricsLog(run_dir=str(tmp_path)), val_check_interval=1)


@pytest.fixture
def full(monkeypatch):
    """Makes the disk refuse the lines whose numbers, counted from 1, are in the set that it is given."""
    append, count = durable.append, itertools.count(1)

    def refuse(numbers):
        def fill(path, text):
            if next(count) in numbers:
                raise OSError(28, "No space left on device")
            append(path, text)

        monkeypatch.setattr(durable, "append", fill)

    return refuse


def test_lines_that_the_disk_refuses_are_written_later(autoencoder_module, batch, fit, tmp_path, full, caplog):
    full({2, 3, 5})
    recorder = Recorder()
    log = MetricsLog(run_dir=str(tmp_path), every=1)
    fit(autoencoder_module(), [batch(i) for i in range(5)], log, logger=recorder)
    assert [line["batches_seen"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]
    assert [step for step, _ in recorder.calls] == [1, 2, 3, 4, 5]
    assert caplog.text.count("No space left on device") == 1


def test_lines_that_are_never_taken_cost_a_warning(autoencoder_module, batch, fit, tmp_path, full, caplog):
    full(set(range(2, 9)))
    fit(autoencoder_module(), [batch(i) for i in range(3)], MetricsLog(run_dir=str(tmp_path), every=1))
    assert [line["batches_seen"] for line in lines(tmp_path)] == [1]
    assert "the last 2 lines of" in caplog.text


def test_lines_that_wait_are_written_when_the_run_is_stopped(autoencoder_module, batch, fit, tmp_path, full):
    class Stop(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_index):
            if module.counters.batches_seen == 3:
                raise Stopped("stopped", 143)

    full({2, 3})
    with pytest.raises(Stopped):
        fit(autoencoder_module(), [batch(i) for i in range(5)], Stop(), MetricsLog(run_dir=str(tmp_path), every=1))
    assert [line["batches_seen"] for line in lines(tmp_path)] == [1, 2, 3]


def test_lines_are_dropped_on_a_full_disk(autoencoder_module, batch, fit, tmp_path, monkeypatch):
    """Without a new file, which it would refuse."""
    module, log = autoencoder_module(), lambda: MetricsLog(run_dir=str(tmp_path), every=1)
    fit(module, [batch(i) for i in range(3)], log())
    before = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    module.counters.batches_seen = 1
    monkeypatch.setattr(durable, "new_file", None)
    fit(module, [batch(1)], log())
    after = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert (after[0], len(after)) == (before[0], 2)


@pytest.mark.parametrize("damage", [b"\xff\n", b"{}\n", b"3\n"])
def test_a_damaged_line_costs_no_other(autoencoder_module, batch, fit, tmp_path, damage):
    module, log = autoencoder_module(), lambda: MetricsLog(run_dir=str(tmp_path), every=1)
    fit(module, [batch(i) for i in range(3)], log())
    file = tmp_path / "metrics.jsonl"
    one, two, three = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(one + damage + two + three)
    module.counters.batches_seen = 2
    fit(module, [batch(2)], log())
    found = file.read_bytes().splitlines(keepends=True)
    assert found[:3] == [one, damage, two]
    assert json.loads(found[3])["batches_seen"] == 3


def test_a_file_that_cannot_be_continued_is_refused_with_advice(autoencoder_module, batch, fit, tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"metrics\.jsonl' cannot be continued: .*; make it readable and writable"):
        fit(autoencoder_module(), [batch()], MetricsLog(run_dir=str(tmp_path)))


def test_a_logger_whose_file_cannot_be_written_does_not_end_the_run(autoencoder_module, batch, fit, tmp_path, caplog):
    class Full(Recorder):
        def log_metrics(self, metrics, step=None):
            raise OSError(28, "No space left on device")

    log = MetricsLog(run_dir=str(tmp_path), every=1)
    fit(autoencoder_module(), [batch(i) for i in range(2)], log, logger=Full())
    assert [line["batches_seen"] for line in lines(tmp_path)] == [1, 2]
    assert caplog.text.count("No space left on device") == 1


def test_echo_prints_what_matters_of_each_line(autoencoder_module, batch, fit, tmp_path, capsys):
    fit(autoencoder_module(), [batch(i) for i in range(2)], MetricsLog(run_dir=str(tmp_path), every=1, echo=True))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("batch ")]
    number = r"[\d.e+-]+"
    pattern = (
        rf"batch 1: train/nll {number}  train/lr {number}  train/grad_norm {number}  {number} images/s  0:00:\d\d left"
    )
    assert re.fullmatch(pattern, said[0])
    assert said[1].endswith("0:00:00 left")
    assert all(len(line) <= 100 for line in said)


def test_a_line_of_other_values_says_as_many_as_fit():
    said = echo.line(7, {f"val/loss_v_t{i}": 0.12345 for i in range(17)})
    assert said == "batch 7: " + "  ".join(f"val/loss_v_t{i} 0.1235" for i in range(4))
    assert echo.line(7, {"train/loss": 1.0}, 3725.4) == "batch 7: train/loss 1  1:02:05 left"

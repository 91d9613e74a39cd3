import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latentdiff.training.callbacks.metrics_log import MetricsLog
from latentdiff.training.tensorboard_logger import TensorBoardLogger


def logger(tmp_path):
    return TensorBoardLogger(save_dir=str(tmp_path), name="tb")


def read(tmp_path):
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    return events


def test_what_comes_again_after_a_kill_replaces_what_stood(tmp_path):
    first = logger(tmp_path)
    first.go_on(0)
    for step in (1, 2, 3):
        first.log_metrics({"loss": float(step)}, step)
    killed = [(event.step, event.value) for event in read(tmp_path).Scalars("loss")]  # it is never closed
    assert killed == [(1, 1.0), (2, 2.0), (3, 3.0)]
    second = logger(tmp_path)
    assert second.experiment is not None  # Lightning opens it before the checkpoint is read
    second.go_on(2)
    for step in (3, 4):
        second.log_metrics({"loss": 10.0 * step}, step)
    found = [(event.step, event.value) for event in read(tmp_path).Scalars("loss")]
    assert found == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]


def test_pictures_and_the_configuration_are_there(tmp_path):
    Image.fromarray(np.full((4, 6, 3), 7, np.uint8)).save(tmp_path / "grid.png")
    one = logger(tmp_path)
    one.log_picture("samples", tmp_path / "grid.png", {"batches_seen": 5, "images_seen": 40})
    one.log_config({"seed": 3}, {"torch": "2"})
    events = read(tmp_path)
    (picture,) = events.Images("samples")
    assert (picture.step, picture.width, picture.height) == (5, 6, 4)
    assert b'"seed": 3' in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_a_full_disk_ends_no_run(autoencoder_module, batch, fit, tmp_path, monkeypatch, caplog):
    def refuse(*args):
        raise OSError(28, "No space left on device")

    one = logger(tmp_path)
    for name in ("add_event", "flush", "close"):
        monkeypatch.setattr(one.experiment.file_writer, name, refuse)
    log = MetricsLog(run_dir=str(tmp_path), every=1)
    fit(autoencoder_module(), [batch(i) for i in range(2)], log, logger=one)
    one.log_config({"seed": 3}, {})
    assert caplog.text.count("No space left on device") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2

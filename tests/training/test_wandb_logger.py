"""What does not need W&B; tests/e2e/test_tracking.py has the rest."""

import sys

import pytest

from latentdiff.config.errors import InputError
from latentdiff.training.wandb_logger import WandbLogger


def test_nothing_is_imported_or_started_before_the_run_goes_on(tmp_path, monkeypatch):
    """As on the ranks that do not talk."""
    monkeypatch.setattr("latentdiff.training.wandb_logger.Pipe", None)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    logger = WandbLogger(run_dir=str(tmp_path))
    logger.log_metrics({"loss": 1.0, "images_seen": 8}, 1)
    logger.log_config({}, {})
    logger.finalize("success")
    assert "wandb" not in sys.modules
    assert list(tmp_path.iterdir()) == []


def test_bad_settings_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"logger\.wandb: expected connect_timeout and finish_timeout above 0"):
        WandbLogger(run_dir=str(tmp_path), finish_timeout=0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="wandb is not installed; pip install wandb"):
        WandbLogger(run_dir=str(tmp_path))


def test_a_wandb_that_cannot_be_imported_says_why(tmp_path, monkeypatch, caplog):
    (tmp_path / "wandb.py").write_text("raise ImportError('it was built for another Python')")
    monkeypatch.syspath_prepend(str(tmp_path))
    logger = WandbLogger(run_dir=str(tmp_path))
    logger.begin()
    logger.finalize("success")
    assert "W&B failed (ImportError: it was built for another Python)" in caplog.text


def test_a_checkpoint_is_sent_from_links_of_its_own(tmp_path, monkeypatch):
    class Sent:
        def __init__(self, module, hear):
            self.messages = []

        def send(self, message):
            self.messages.append(message)

    monkeypatch.setattr("latentdiff.training.wandb_logger.Pipe", Sent)
    checkpoint = tmp_path / "checkpoints" / "last"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    for artifacts in (False, True):
        logger = WandbLogger(run_dir=str(tmp_path), artifacts=artifacts)
        logger.go_on(0)
        logger.log_checkpoint(checkpoint, ["last"], {"batches_seen": 4})
        calls = [message for message in logger._pipe.messages if message.get("call") == "checkpoint"]
        assert len(calls) == artifacts
    (copy,) = (tmp_path / "wandb" / "checkpoints").iterdir()
    assert calls == [{"call": "checkpoint", "path": str(copy), "aliases": ["last"], "about": {"batches_seen": 4}}]
    assert (copy / "model.safetensors").samefile(checkpoint / "model.safetensors")

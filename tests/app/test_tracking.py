"""An evaluation's numbers in an offline W&B run, read back from its file."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from latentdiff.app import tracking
from latentdiff.app.tracking import check_logger, to_wandb
from latentdiff.config.errors import InputError

FOUND = {
    "results": {"frechet": {"fd_randconv-v1_n500": 3.5, "per_class": [1.0, 2.0]}, "captions": {"shape": 0.5}},
    "controls": {"bicubic": {"frechet": {"fd_randconv-v1_n500": 9.0}}},
    "repeats": {"count": 2, "sd": {"frechet": {"fd_randconv-v1_n500": 0.25}}},
    "card": {"schema": 2, "protocol": {"seeds": {"base": 3}}},
}
WANDB = {
    "_target_": "pytorch_lightning.loggers.WandbLogger",
    "project": "latentdiff",
    "group": "${oc.select:experiment,null}",
    "save_dir": "${run_dir}",
    "offline": True,
}


def config(**loggers: dict) -> DictConfig:
    return OmegaConf.create({"run_dir": None, "logger": loggers})


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.usefixtures("quiet")
def test_an_offline_run_holds_the_numbers_the_card_and_the_media(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "grid.png")
    (tmp_path / "report.html").write_text("<p>all of it</p>", encoding="utf-8")
    to_wandb(config(wandb=WANDB), FOUND, tmp_path)
    (run,) = tmp_path.glob("wandb/offline-run-*")
    (file,) = run.glob("run-*.wandb")
    summary, settings = read(file)
    others = ("_", "grid", "report", "trainer/")
    assert {name: value for name, value in summary.items() if not name.startswith(others)} == {
        "frechet.fd_randconv-v1_n500": 3.5,
        "captions.shape": 0.5,
        "controls.bicubic.frechet.fd_randconv-v1_n500": 9.0,
        "sd.frechet.fd_randconv-v1_n500": 0.25,
    }
    assert settings["card"] == FOUND["card"]
    assert [path.suffix for path in sorted(run.glob("files/media/*/*"))] == [".html", ".png"]


def test_a_wandb_that_fails_costs_a_warning(tmp_path: Path, monkeypatch, capsys) -> None:
    def fails(node: DictConfig) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(tracking, "build", fails)
    to_wandb(config(wandb=WANDB), FOUND, tmp_path)
    assert "W&B did not take the results (ConnectionError: no network)" in capsys.readouterr().err


def test_without_a_logger_nothing_is_written(tmp_path: Path) -> None:
    to_wandb(OmegaConf.create({"run_dir": None, "logger": None}), FOUND, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_loggers_of_a_training_are_refused() -> None:
    check_logger(config(wandb=WANDB))
    check_logger(OmegaConf.create({"logger": None}))
    with pytest.raises(InputError, match="logger: 'csv' records a training"):
        check_logger(config(wandb=WANDB, csv={"_target_": "latentdiff.training.csv_logger.CSVLogger"}))


def read(path: Path) -> tuple[dict, dict]:
    """Summary and configuration in a W&B run file."""
    from wandb.proto import wandb_internal_pb2

    summary, settings = {}, {}
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for part, found in ((record.summary, summary), (record.config, settings)):
            for item in part.update:
                found[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return summary, settings


def records(data: bytes) -> Iterator[bytes]:
    """LevelDB's log format, after W&B's header of 7 bytes: blocks of 32 KiB, each piece with crc, length and type."""
    position, whole = 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        size, kind = struct.unpack_from("<HB", data, position + 4)
        whole += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):
            yield whole
            whole = b""

"""An evaluation's numbers in an offline W&B run, read back from its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from latentdiff.app.evaluation import tracking
from latentdiff.app.evaluation.tracking import check_logger, to_wandb
from latentdiff.config.errors import InputError

FOUND = {
    "results": {"frechet": {"fd_randconv-v1_n500": 3.5, "per_class": [1.0, 2.0]}, "captions": {"shape": 0.5}},
    "controls": {"bicubic": {"frechet": {"fd_randconv-v1_n500": 9.0}}},
    "repeats": {"count": 2, "sd": {"frechet": {"fd_randconv-v1_n500": 0.25}}},
    "card": {"schema": 2, "protocol": {"seeds": {"base": 3}}},
}
WANDB = {
    "_target_": "latentdiff.training.wandb_logger.WandbLogger",
    "project": None,
    "entity": None,
    "group": "${oc.select:experiment,null}",
    "run_dir": "${run_dir}",
    "offline": True,
}


def config(**loggers: dict) -> DictConfig:
    return OmegaConf.create({"run_dir": None, "checkpoint": None, "logger": loggers})


def test_an_offline_run_holds_the_numbers_the_card_and_the_media(tmp_path: Path, read_wandb, monkeypatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    Image.new("RGB", (4, 4)).save(tmp_path / "grid.png")
    (tmp_path / "report.html").write_text("<p>all of it</p>", encoding="utf-8")
    to_wandb(config(wandb=WANDB), FOUND, tmp_path)
    run = read_wandb(tmp_path)
    others = ("_", "grid", "report", "metrics")
    assert {name: value for name, value in run.summary.items() if not name.startswith(others)} == {
        "frechet.fd_randconv-v1_n500": 3.5,
        "captions.shape": 0.5,
        "controls.bicubic.frechet.fd_randconv-v1_n500": 9.0,
        "sd.frechet.fd_randconv-v1_n500": 0.25,
    }
    assert run.config["card"] == FOUND["card"]
    assert run.runs[0].job_type == "evaluate"
    assert run.runs[0].project == "latentdiff"
    assert list((tmp_path / "temporary").iterdir()) == []
    media = sorted(tmp_path.glob("wandb/offline-run-*/files/media/*/*"))
    assert [path.suffix for path in media] == [".html", ".png", ".json"]
    assert json.loads(media[-1].read_text())["data"] == [
        ["frechet.fd_randconv-v1_n500", 3.5, 0.25],
        ["captions.shape", 0.5, None],
        ["controls.bicubic.frechet.fd_randconv-v1_n500", 9.0, None],
    ]


def test_it_is_where_the_training_is_unless_told_otherwise(tmp_path: Path, read_wandb) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "last"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    place = "{project: shapes, entity: a-team, group: sweep-7}"
    (checkpoint / "config.yaml").write_text(f"experiment: ldm_class\nlogger: {{wandb: {place}}}\n")
    (tmp_path / "evaluation").mkdir()
    cfg = OmegaConf.merge(config(wandb=WANDB | {"entity": "others"}), {"checkpoint": str(tmp_path / "run")})
    to_wandb(cfg, {"results": {}}, tmp_path / "evaluation")
    (run,) = read_wandb(tmp_path / "evaluation").runs
    assert (run.project, run.entity, run.run_group) == ("shapes", "others", "sweep-7")


def test_a_wandb_that_fails_costs_a_warning(tmp_path: Path, monkeypatch, capsys) -> None:
    def fails(node: DictConfig) -> None:
        raise OSError("no space")

    monkeypatch.setattr(tracking, "build", fails)
    to_wandb(config(wandb=WANDB), FOUND, tmp_path)
    assert "W&B did not take the results (OSError: no space)" in capsys.readouterr().err


def test_without_a_logger_nothing_is_written(tmp_path: Path) -> None:
    to_wandb(OmegaConf.create({"run_dir": None, "logger": None}), FOUND, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_loggers_of_a_training_are_refused() -> None:
    check_logger(config(wandb=WANDB))
    check_logger(OmegaConf.create({"logger": None}))
    with pytest.raises(InputError, match="logger: 'csv' records a training"):
        check_logger(config(wandb=WANDB, csv={"_target_": "latentdiff.training.csv_logger.CSVLogger"}))

"""An exported folder in the place of the training run that it was made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentdiff.app import cli


@pytest.fixture(scope="module")
def folder(ldm: Path, tmp_path_factory) -> Path:
    """Moved after it was written."""
    home = tmp_path_factory.mktemp("publishing")
    assert cli.main(["export", str(ldm), str(home / "written"), "--format", "latentdiff"]) == 0
    return (home / "written").rename(home / "a place elsewhere")


def images(run_dir: Path) -> np.ndarray:
    return np.asarray(Image.open(run_dir / "grid.png"))


def test_it_samples_what_the_run_samples(programs, ldm: Path, folder: Path, tmp_path: Path) -> None:
    for name, checkpoint in (("run", ldm), ("folder", folder)):
        request = (f"checkpoint={checkpoint}", "prompt=a red circle", "seeds=[0,1]", f"run_dir={tmp_path / name}")
        programs.done("sample", *programs.use, *request)
    assert np.array_equal(images(tmp_path / "run"), images(tmp_path / "folder"))


def test_it_is_evaluated_under_the_run_s_identity(programs, ldm: Path, folder: Path, tmp_path: Path) -> None:
    measured = ("num_images=8", "batch_size=8", "controls=false", "neighbours=0", "data=shapes", "data.size=16")
    few = ("data.workers=0", "data.module.source.train_samples=64", "data.module.source.val_samples=16")
    for name, checkpoint in (("run", ldm), ("folder", folder)):
        place = (f"checkpoint={checkpoint}", f"run_dir={tmp_path / name}")
        programs.done("evaluate", *programs.use, *place, *measured, *few)
    run, own = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "folder"))
    assert run["results"] == own["results"]
    assert run["card"]["model"]["digest"] == own["card"]["model"]["digest"]


@pytest.mark.parametrize("key", ["first_stage.checkpoint", "init_backbone"])
def test_stage_two_trains_on_its_first_stage(programs, folder: Path, tmp_path: Path, key: str) -> None:
    """Named, or that of the backbone that training starts from."""
    run = ("max_batches=1", "validate_every=1", f"{key}={folder}", f"run_dir={tmp_path / 'run'}")
    programs.done("train", *programs.stage_two, *run)
    manifest = json.loads((tmp_path / "run/checkpoints/last/manifest.json").read_text())
    assert manifest["first_stage"]["path"] == str(folder / "first_stage")

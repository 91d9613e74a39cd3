"""The group ``debug``: two batches of every published second stage on a CPU, with a tiny first stage."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from omegaconf import OmegaConf
from PIL import Image

from latentdiff.app import launch
from latentdiff.app.run import first_stage
from latentdiff.config.errors import InputError
from latentdiff.data.shards import write_shards

REPOSITORY = Path(__file__).resolve().parents[2]
FIRST_STAGE_OF = {
    path.stem: OmegaConf.load(path).first_stage.experiment
    for path in sorted((REPOSITORY / "configs" / "experiment" / "paper").glob("*.yaml"))
    if not path.stem.startswith("ae_")
}


class Training:
    """train.py in this process, with all that it reads or writes below ``home``."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.common = (
            f"data.train={home / 'shards'}",
            "trainer=cpu",
            "trainer.precision=32-true",
            *(f"paths.{name}={home / name}" for name in ("data", "outputs", "first_stages")),
        )
        spec = importlib.util.spec_from_file_location("root_train", REPOSITORY / "train.py")
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        self.job = script.job

    def __call__(self, *overrides: str) -> tuple[int, str]:
        """Exit code and what was written to stderr."""
        err, argv = io.StringIO(), [str(REPOSITORY / "train.py"), *overrides, *self.common]
        with (
            patch.object(sys, "argv", argv),
            patch.object(Hydra, "get_mode", lambda *_, **__: RunMode.RUN),  # saves one of three compositions
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(err),
            inside(self.home),
        ):
            return launch.run(self.job, "train"), err.getvalue()


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """In that working directory, on one thread."""
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(folder)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Training:
    home = tmp_path_factory.mktemp("paper")
    write_shards((sample(i) for i in range(40)), home / "shards")
    return Training(home)


def sample(number: int) -> dict[str, object]:
    """Noise with a caption, one of 1000 classes, and a map of 182."""
    rng = np.random.default_rng(number)
    image, labels = rng.integers(0, 256, (40, 40, 3), np.uint8), rng.integers(0, 182, (40, 40), np.uint8)
    return {"png": png(image), "seg.png": png(labels), "txt": f"picture {number}", "cls": 25 * number}


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def first_stages(train: Training) -> dict[str, Path]:
    """Tiny ones by the experiment that trains them; those with latents of one shape share one."""
    shared = {"paper/ae_vq_f4": train.home / "f4", "paper/ae_kl_f8": train.home / "f8"}
    for name, run_dir in shared.items():
        code, err = train(f"experiment={name}", "debug=tiny_autoencoder", f"run_dir={run_dir}")
        assert code == 0, err
    return shared | {"paper/ae_vq_f4_noattn": train.home / "f4", "paper/ae_vq_f8": train.home / "f8"}


def debug(name: str) -> str:
    tiny = "tiny_dit" if name.startswith("dit") else "tiny_unet"
    return f"debug=[{tiny},tiny_text]" if name.startswith("sd") or "txt2img" in name else f"debug={tiny}"


@pytest.mark.parametrize("name", FIRST_STAGE_OF)
def test_two_batches_of_each(name: str, train: Training, first_stages: dict[str, Path], tmp_path: Path) -> None:
    first = first_stages[FIRST_STAGE_OF[name]]
    code, err = train(f"experiment=paper/{name}", debug(name), f"first_stage.checkpoint={first}", f"run_dir={tmp_path}")
    assert code == 0, err
    assert (tmp_path / "checkpoints" / "last" / "model.safetensors").is_file()
    assert len(list((tmp_path / "samples").glob("*00000002.png"))) == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) >= 2


@pytest.mark.parametrize("name", ["ldm4_ffhq", "dit_xl_2"])
def test_the_first_stage_that_is_trained_along_is_tiny_too(
    name: str, train: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def refuse(overrides: list[str]) -> None:
        asked.append(overrides)
        raise InputError("asked")

    monkeypatch.setattr(first_stage, "_train", refuse)
    assert train(f"experiment=paper/{name}", debug(name), f"run_dir={tmp_path}")[0] == 2
    assert asked[0][0] == f"experiment={FIRST_STAGE_OF[name]}"
    assert "debug=tiny_autoencoder" in asked[0]
    assert any(line.startswith("data.train=") and str(train.home / "shards") in line for line in asked[0])

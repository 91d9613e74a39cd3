"""train.py, evaluate.py and sample.py in this process, on tiny models, tiny data and a few batches."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from PIL import Image

import latentdiff
from latentdiff.app import launch
from latentdiff.app.run.run_dir import CHILD_RUN_DIR
from latentdiff.data.datamodule import DataModule
from latentdiff.data.shards import write_shards

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = Path(latentdiff.__file__).resolve().parents[1]

EVERY = ("trainer=cpu", "trainer.precision=32-true")
DATA = ("data.size=16", "data.workers=0", "data.module.source.train_samples=64", "data.module.source.val_samples=16")
SHORT = ("global_batch=8", "max_batches=4", "validate_every=2", "callbacks.log.every=1")
FAST = ("optim.lr=5.0e-3", "optim.schedule.warmup=0")
AUTOENCODER = (
    "autoencoder=kl_f8",
    "autoencoder.channels=8",
    "autoencoder.channel_multipliers=[1,2]",
    "autoencoder.num_res_blocks=1",
    "adversarial.discriminator.channels=8",
    "adversarial.discriminator.layers=1",
    "adversarial.schedule.start=1",
    "adversarial.schedule.warmup=1",
    "adversarial.schedule.ramp=0",
    "task.statistics_images=32",
)
BACKBONE = (
    "backbone=unet",
    "backbone.channels=32",
    "backbone.channel_multipliers=[1]",
    "backbone.num_res_blocks=1",
    "backbone.attention_factors=[1]",
    "backbone.heads=2",
    "sampler.steps=2",
    "+callbacks.samples.count=4",
)
TEXT = (
    "conditioner=text_transformer",
    "conditioner.width=32",
    "conditioner.module.transformer.layers=1",
    "conditioner.module.transformer.heads=2",
    "conditioner.module.transformer.max_length=16",
)


@dataclass(frozen=True)
class Outcome:
    """What a program answered."""

    code: int
    out: str
    err: str


class Programs:
    """The root scripts, with all that they read or write below ``home``; overrides given later win."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.paths = (
            f"paths.data={home / 'data'}",
            f"paths.outputs={home / 'outputs'}",
            f"paths.first_stages={home / 'first_stages'}",
        )
        common = (*EVERY, *self.paths, *DATA, *SHORT, *FAST)
        self.stage_one = ("experiment=ae_kl", *common, *AUTOENCODER)
        self.stage_two = ("experiment=ldm_txt2img", *common, *BACKBONE, *TEXT)
        self.conditioned = (*common, *BACKBONE)
        """Overrides for an experiment of stage two with its own conditioner."""
        self.use = (*EVERY, *self.paths)
        """Overrides for evaluate.py and sample.py."""
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != CHILD_RUN_DIR},
            "PYTHONPATH": str(SOURCE),
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "offline",
            "WANDB_SILENT": "true",
        }

    def __call__(self, name: str, *overrides: str) -> Outcome:
        """Runs ``name``.py in this process, in an empty working directory."""
        out, err = io.StringIO(), io.StringIO()
        argv = [str(REPOSITORY / f"{name}.py"), *self._merged(*overrides)]
        with (
            patch.object(sys, "argv", argv),
            patch.dict(os.environ, self.environment),
            patch.object(Hydra, "get_mode", lambda *_, **__: RunMode.RUN),  # saves one of three compositions
            _inside(self.home),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            _one_thread(),
        ):
            code = launch.run(_job(name), name)
        return Outcome(code, out.getvalue(), err.getvalue())

    def done(self, name: str, *overrides: str) -> Outcome:
        """Runs ``name``.py, which has to succeed."""
        outcome = self(name, *overrides)
        assert outcome.code == 0, outcome
        return outcome

    def start(self, name: str, *overrides: str, start_new_session: bool = False) -> subprocess.Popen[str]:
        """Starts ``name``.py in a process of its own, in a process group of its own where that is to get signals."""
        command = [sys.executable, str(REPOSITORY / f"{name}.py"), *self._merged(*overrides)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        settings = {"cwd": self.home, "env": self.environment, "start_new_session": start_new_session}
        return subprocess.Popen(command, **settings, **pipes)

    @staticmethod
    def _merged(*overrides: str) -> tuple[str, ...]:
        """Hydra refuses a key given twice: the last one stays. The size of the embedded data goes with it."""
        last = {override.partition("=")[0]: override for override in overrides}
        gone = "data.module.source." if {"data=webdataset", "data=resampled"} & set(overrides) else "nothing"
        return tuple(override for key, override in last.items() if not key.startswith(gone))


def _job(name: str) -> Callable:
    spec = importlib.util.spec_from_file_location(f"root_{name}", REPOSITORY / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.job


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("e2e"))


@pytest.fixture(scope="session")
def autoencoder(programs: Programs) -> Path:
    """Run directory of a trained first stage."""
    run_dir = programs.home / "autoencoder"
    programs.done("train", *programs.stage_one, f"run_dir={run_dir}")
    return run_dir


@pytest.fixture(scope="session")
def ldm(programs: Programs, autoencoder: Path) -> Path:
    """Run directory of a trained second stage."""
    run_dir = programs.home / "ldm"
    programs.done("train", *programs.stage_two, f"first_stage.checkpoint={autoencoder}", f"run_dir={run_dir}")
    return run_dir


@dataclass(frozen=True)
class Place:
    """What faulty commands name: two good runs, and ``home`` with files that are at fault."""

    home: Path
    autoencoder: Path
    ldm: Path

    def contents(self) -> dict[str, tuple[int, int]]:
        """Size and time of every file."""
        files = [path for folder in (self.home, self.autoencoder, self.ldm) for path in folder.rglob("*")]
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()}


@pytest.fixture(scope="session")
def place(programs: Programs, autoencoder: Path, ldm: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    home = tmp_path_factory.mktemp("bad")
    (home / "file").write_text("a file where a folder should be")
    (home / "empty").mkdir()
    (home / "prompts.txt").write_text("a red circle\na blue ring\n")
    file = io.BytesIO()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(file, "PNG")
    write_shards([{"png": file.getvalue(), "cls": i} for i in range(20)], home / "uncaptioned")
    (home / "damaged.tar").write_bytes((home / "uncaptioned" / "00000.tar").read_bytes()[:5000])
    shutil.copytree(autoencoder, home / "truncated")
    weights = home / "truncated" / "checkpoints" / "last" / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    shutil.copytree(ldm, home / "unreadable")
    (home / "unreadable" / "checkpoints" / "last" / "manifest.json").write_text("{")
    other = ("autoencoder.latent_channels=3", "max_batches=1", f"run_dir={home / 'other'}")
    programs.done("train", *programs.stage_one, *other)
    return Place(home, autoencoder, ldm)


@pytest.fixture
def refused(programs: Programs, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """``refused(program, overrides, message)``: exit code 2 and that message alone; no batch was asked for, all files
    are as before, and nothing is in the run directory ``tmp_path``."""

    def check(name: str, overrides: list[str], message: str) -> None:
        asked: list[DataModule] = []
        monkeypatch.setattr(DataModule, "train_dataloader", asked.append)
        before = place.contents()
        outcome = programs(name, *overrides)
        assert outcome.code == 2, outcome
        assert re.search(message, outcome.err, re.DOTALL), outcome.err
        lines = outcome.err.splitlines()
        assert sum(line.startswith("error: ") for line in lines) == 1, outcome.err  # warnings may come before it
        assert "Traceback" not in outcome.err
        assert asked == []
        assert place.contents() == before
        assert list(tmp_path.iterdir()) == []

    return check


@pytest.fixture(scope="session")
def metrics() -> Callable[[Path], list[dict]]:
    """Run directory -> the lines of its metrics.jsonl without the speed, which is never the same twice."""

    def read(run_dir: Path) -> list[dict]:
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if "/" in key or key.endswith("_seen")} for line in lines]

    return read

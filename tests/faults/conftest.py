"""train.py in processes that can be killed, signalled and watched, and what two of its runs must have in common."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

import latentdiff
from latentdiff.checkpoint import store

SOURCE = Path(latentdiff.__file__).resolve().parents[1]
SERVER = Path(__file__).with_name("fork_server.py")

_TINY = (
    "trainer=cpu",
    "trainer.precision=32-true",
    "+trainer.deterministic=true",
    "data.size=16",
    "data.workers=2",
    "data.module.source.train_samples=128",
    "data.module.source.val_samples=16",
    "global_batch=8",
    "max_batches=45",
    "validate_every=15",
    "callbacks.log.every=1",
    "callbacks.checkpoints.every=5",
    "optim.schedule.warmup=0",
)
"""A few seconds of training; every third checkpoint falls on a validation and a grid."""
STAGE_ONE = (
    *_TINY,
    "experiment=ae_kl",
    "autoencoder=kl_f8",
    "autoencoder.channels=8",
    "autoencoder.channel_multipliers=[1,2]",
    "autoencoder.num_res_blocks=1",
    "adversarial.discriminator.channels=8",
    "adversarial.discriminator.layers=1",
    "adversarial.schedule.start=4",
    "adversarial.schedule.warmup=1",
    "adversarial.schedule.ramp=0",
    "task.statistics_images=32",
    "callbacks.measures=null",
)
"""Two optimisers, the adversary from the fifth batch on."""
STAGE_TWO = (
    *_TINY,
    "experiment=ldm_txt2img",
    "backbone=unet",
    "backbone.channels=32",
    "backbone.channel_multipliers=[1]",
    "backbone.num_res_blocks=1",
    "backbone.attention_factors=[1]",
    "backbone.heads=2",
    "sampler.steps=2",
    "+callbacks.samples.count=4",
    "conditioner=text_transformer",
    "conditioner.width=32",
    "conditioner.module.transformer.layers=1",
    "conditioner.module.transformer.heads=2",
    "conditioner.module.transformer.max_length=16",
)


@dataclass
class Process:
    """A train.py that leads a process group of its own."""

    server: Server
    number: int
    output: Path

    def wait(self) -> int:
        """The exit code, minus the signal where one killed it."""
        return self.server.ask(wait=self.number)

    def kill(self) -> None:
        """SIGKILL for it and for all that it started, in whatever state they are."""
        os.killpg(self.number, signal.SIGKILL)

    @property
    def said(self) -> str:
        return self.output.read_text()


@dataclass
class Server:
    """See ``fork_server``; all runs share data and first stages below ``home``."""

    home: Path
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER)], stdin=pipe, stdout=pipe, text=True, env=environment, cwd=self.home
        )
        assert self.ask() == 0

    def ask(self, **question: object) -> int:
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, run_dir: Path, command: tuple[str, ...], **environment: str) -> Process:
        """train.py with ``command``, in ``run_dir``; its output is added to the file ``run_dir``.log."""
        paths = {"data": "data", "outputs": "outputs", "first_stages": "first_stages"}
        places = [f"paths.{name}={self.home / folder}" for name, folder in paths.items()]
        last = {line.partition("=")[0]: line for line in (*command, *places, f"run_dir={run_dir}")}
        output = run_dir.with_name(f"{run_dir.name}.log")
        number = self.ask(start=list(last.values()), environment=environment, output=str(output))
        return Process(self, number, output)

    def start_two(self, run_dir: Path, command: tuple[str, ...], **environment: str) -> list[Process]:
        """The same as two ranks, as a launcher such as torchrun starts them: neither is the other's child."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
        group["LATENTDIFF_RUN_DIR"] = str(run_dir)
        return [
            self.start(run_dir, (*command, "trainer=ddp_cpu"), LOCAL_RANK=str(rank), **group, **environment)
            for rank in range(2)
        ]

    def done(self, run_dir: Path, command: tuple[str, ...], **environment: str) -> float:
        """Runs to the end, without a fault; returns the seconds it took."""
        began = time.monotonic()
        process = self.start(run_dir, command, **environment)
        assert process.wait() == 0, process.said
        return time.monotonic() - began


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("faults"))
    yield server
    server.process.stdin.close()
    assert server.process.wait(timeout=60) == 0


@pytest.fixture(scope="session")
def first_stage(server: Server) -> Path:
    run_dir = server.home / "first_stage"
    server.done(run_dir, (*STAGE_ONE, "max_batches=5"))
    return run_dir


@pytest.fixture(scope="session")
def stage_one() -> tuple[str, ...]:
    return STAGE_ONE


@pytest.fixture(scope="session")
def stage_two(first_stage: Path) -> tuple[str, ...]:
    return (*STAGE_TWO, f"first_stage.checkpoint={first_stage}")


def losses(run_dir: Path) -> list[dict]:
    """The lines of metrics.jsonl; the speed, which is never the same twice, is left out."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "/" in name or name.endswith("_seen")} for line in lines]


def differences(a: Path, b: Path) -> list[str]:
    """Places at which the last and the best checkpoints of two runs differ in any bit."""
    names = ("last", "best")
    return [
        place for name in names for place in _differences(*(_contents(run / "checkpoints" / name) for run in (a, b)))
    ]


def _contents(checkpoint: Path) -> dict[str, object]:
    state = store.load_train_state(checkpoint)
    state.pop("global_step")  # Lightning's, which counts from a process's start and which nothing reads
    weights = {part: store.load_weights(checkpoint, part) for part in ("model", "ema")}
    return {"train_state": state, **weights, "counters": store.verify(checkpoint).counters}


def _differences(a: object, b: object, where: str = "") -> list[str]:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b)
        return [] if same else [where]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [place for key in a for place in _differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [place for i, (x, y) in enumerate(zip(a, b)) for place in _differences(x, y, f"{where}.{i}")]
    return [] if type(a) is type(b) and a == b else [where]


def _bytes(tensor: torch.Tensor) -> bytes:
    return np.ascontiguousarray(tensor.view(-1).view(torch.uint8).numpy()).tobytes()


@pytest.fixture(scope="session")
def same_run():
    """Run directory, run directory -> asserts that the second is the first, bit for bit."""

    def check(whole: Path, resumed: Path) -> None:
        assert losses(resumed) == losses(whole)
        assert differences(resumed, whole) == []

    return check

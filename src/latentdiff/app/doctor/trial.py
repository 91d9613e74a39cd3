"""A few real training steps on this machine, thrown away: what they take in time and memory."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from torch import nn

from latentdiff.app import build as make
from latentdiff.app.doctor.memory import available_memory
from latentdiff.app.run.summary import parts
from latentdiff.checkpoint.space import tensor_bytes
from latentdiff.data.datamodule import DataModule

ENOUGH_SECONDS = 60.0
"""Of steps: what has been measured until then must do."""


@dataclass(frozen=True)
class Trial:
    """``seconds`` of a batch without the first; ``peak_bytes`` of the device, on a CPU of the whole process;
    ``state_bytes`` of weights, averages and optimisers, which is what a checkpoint holds."""

    device: str
    precision: str
    batches: int
    seconds: float
    peak_bytes: int
    state_bytes: int


class _Clock(Callback):
    """When each batch was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        trainer.should_stop = len(self.times) > 1 and self.times[-1] - self.times[0] > ENOUGH_SECONDS


class OutOfMemoryError(RuntimeError):
    """The device has not enough for a batch."""


def train_some(cfg: DictConfig, module: pl.LightningModule, data: DataModule, *, steps: int) -> Trial:
    """``steps`` batches of ``data`` on one device, without validation, pictures or checkpoints.

    Raises OutOfMemoryError.
    """
    clock, accelerator = _Clock(), cfg.trainer.accelerator
    with tempfile.TemporaryDirectory() as scratch:
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=1,
            precision=make.precision(cfg.trainer.precision, accelerator),
            max_epochs=1,
            limit_train_batches=steps,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=scratch,
        )
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            with _no_more_than_is_available() if device.type == "cpu" else nullcontext():
                trainer.fit(module, datamodule=data)
        except (torch.cuda.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemoryError from error
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):
                raise
            raise OutOfMemoryError from error
    spans = [later - earlier for earlier, later in zip(clock.times, clock.times[1:])]
    state = sum(tensor_bytes(optimizer.state_dict()["state"]) for optimizer in trainer.optimizers)
    return Trial(
        device=device.type,
        precision=str(trainer.precision),
        batches=len(clock.times),
        seconds=median(spans),
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_of_process(),
        state_bytes=state + 2 * trained_bytes(module),
    )


@contextmanager
def _no_more_than_is_available() -> Iterator[None]:
    """On Linux an allocation beyond the memory that is free fails: the system would look for a process to kill."""
    status = Path("/proc/self/status")
    if not status.exists():
        yield
        return
    own = next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmData"))
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = own + (available_memory() or 0)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if before[1] < 0 else min(limit, before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def trained_bytes(module: nn.Module) -> int:
    return sum(tensor_bytes(p) for part in parts(module).values() for p in part.parameters() if p.requires_grad)


def _peak_of_process() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def scaled_down(cfg: DictConfig, *, global_batch: int, steps: int) -> DictConfig:
    """``cfg`` for a trial: one process's part of a batch, and no writing into a run directory that is kept."""
    small = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    small.global_batch, small.max_batches = global_batch, steps + 1
    small.run_dir = tempfile.gettempdir()
    return small

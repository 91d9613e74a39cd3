"""Snapshots of the power-function averages, from which an average of any length is made after training."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from latentdiff import durable
from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError
from latentdiff.training.callbacks.at_least import at_least_one
from latentdiff.training.callbacks.refusal import not_fatal
from latentdiff.training.parallel import gathered, is_sharded

FOLDER = "ema_snapshots"
Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class Snapshot:
    """What the ``.json`` beside a snapshot's weights holds."""

    weights: str
    """Name of the ``.safetensors`` file: the trained parameters, named as in the trained model."""
    length: float
    updates: int
    batches_seen: int
    images_seen: int
    dtype: Precision


class EmaSnapshots(Callback):
    """``count`` times in a run, and with every checkpoint, writes the averages of the module's ``power_ema`` to
    ``ema_snapshots/``, where it has one.

    Each writes the trained weights once per length. A resumed run drops the snapshots of batches that its checkpoint
    has not seen. The more snapshots, the closer the reconstruction (see docs/math.md): one that the disk refuses is
    mentioned and left out.

    Args:
        run_dir: holds the folder.
        total: batches of the run.
        count: snapshots of each length, evenly over the run.
        dtype: of the files; float16 halves them, at a relative error of 5e-4 of each weight.
    """

    def __init__(self, *, run_dir: str, total: int, count: int = 40, dtype: Precision = "float32"):
        if dtype not in get_args(Precision):
            raise InputError(
                f"callbacks.ema_snapshots.dtype: expected {' or '.join(get_args(Precision))}, got {dtype!r}"
            )
        self.every = max(1, total // at_least_one("ema_snapshots.count", count))
        self.folder, self.dtype = Path(run_dir) / FOLDER, dtype
        self._taken = -1

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            durable.tidy(self.folder)
            for snapshot in read_snapshots(self.folder):
                if snapshot.batches_seen > module.counters.batches_seen:
                    _description(self.folder / snapshot.weights).unlink()
                    (self.folder / snapshot.weights).unlink(missing_ok=True)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        if module.counters.batches_seen % self.every == 0:
            self._take(trainer, module)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict) -> None:
        self._take(trainer, module)

    def _take(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        averages, now = getattr(module, "power_ema", None), module.counters.batches_seen
        if averages is None or not (trainer.is_global_zero or is_sharded(module)) or self._taken == now:
            return
        trained = {name for name, p in module.model.named_parameters() if p.requires_grad}
        for length, average in zip(averages.lengths, averages.averages):
            weights = {name: p for name, p in average.named_parameters() if name in trained}
            weights = gathered(weights, keep=trainer.is_global_zero)
            snapshot = Snapshot(
                weights=f"batch-{now:08d}-length-{length:g}.safetensors",
                length=length,
                updates=averages.count,
                **module.counters.as_dict(),
                dtype=self.dtype,
            )
            if trainer.is_global_zero:
                self._write(snapshot, weights)
        self._taken = now

    def _write(self, snapshot: Snapshot, weights: dict[str, Tensor]) -> None:
        """The description comes last: with it the snapshot is complete."""
        stored = {name: p.detach().to("cpu", getattr(torch, self.dtype)).contiguous() for name, p in weights.items()}
        if large := [name for name, value in stored.items() if not torch.isfinite(value).all()]:
            raise InputError(f"callbacks.ema_snapshots.dtype: {large[0]} does not fit {self.dtype}; use float32")
        file = self.folder / snapshot.weights
        with not_fatal(file):
            with durable.new_file(file) as staged:
                store.write_tensors(stored, staged)
            with durable.new_file(_description(file)) as staged:
                staged.write_text(json.dumps(asdict(snapshot), indent=2) + "\n", encoding="utf-8")


def read_snapshots(folder: Path) -> list[Snapshot]:
    """The complete ones, by batches seen and length; none where there is no folder.

    Raises InputError where a description is damaged.
    """
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            found.append(Snapshot(**json.loads(file.read_text(encoding="utf-8"))))
        except (ValueError, TypeError) as error:
            raise InputError(f"'{file}' is damaged ({error}); remove it") from error
    return sorted(found, key=lambda snapshot: (snapshot.batches_seen, snapshot.length))


def _description(weights: Path) -> Path:
    return weights.with_suffix(".json")

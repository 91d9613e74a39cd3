"""What training counts: batches and images. Lightning's global_step counts optimiser steps and is not used."""

from __future__ import annotations

from dataclasses import dataclass

import pytorch_lightning as pl
import torch.distributed as dist

from latentdiff.config.errors import RunError
from latentdiff.training.optim import restore_settings
from latentdiff.types import Batch


@dataclass
class Counters:
    """Progress since training began, over all ranks and all resumed runs."""

    batches_seen: int = 0
    images_seen: int = 0

    def advance(self, batch: Batch) -> None:
        self.batches_seen += 1
        self.images_seen += batch.global_size

    def as_dict(self) -> dict[str, int]:
        return {"batches_seen": self.batches_seen, "images_seen": self.images_seen}


def refuse_different_starts(start: int) -> None:
    """Raises RunError, on all ranks, where they do not all begin at batch ``start``; to be called on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    starts = [start] * dist.get_world_size()
    dist.all_gather_object(starts, start)
    if other := next((rank for rank, found in enumerate(starts) if found != starts[0]), None):
        raise RunError(
            f"rank {other} stands at batch {starts[other]}, rank 0 at {starts[0]}: run_dir must be on a file system "
            "that all nodes share"
        )


def continue_run(trainer: pl.Trainer, counters: Counters) -> None:
    """What Lightning does not continue by itself, to be called when training starts, fresh or resumed.

    The validation interval counts batches since training began, not since this run did; and the optimisers have this
    run's settings, so that a resumed run can change them.
    """
    trainer.fit_loop.epoch_loop.batch_progress.total.ready = counters.batches_seen
    for optimizer in trainer.optimizers:
        restore_settings(optimizer)

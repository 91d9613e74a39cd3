"""What went wrong in one of several processes, told by the process that knows."""

from __future__ import annotations

import sys

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from latentdiff.config.errors import InputError, RunError


class RankFaults(Callback):
    """Prints the faults of ranks other than 0, with their number, before the process group goes down.

    Before training all ranks meet the same faults, and the first process speaks for them (``launch``). In training one
    rank may read what no other does; rank 0 learns only that the connection is closed.
    """

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, InputError | RunError) and not trainer.is_global_zero:
            print(f"error: rank {trainer.global_rank}: {exception}", file=sys.stderr, flush=True)

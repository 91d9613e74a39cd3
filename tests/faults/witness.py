"""train.py with a witness among its callbacks. The environment says what it does:

``WITNESS_KEYS``: a file, with the rank added to its name: one JSON line per batch, {"batch", "keys"} of this rank.
``WITNESS_SIGNAL``: JSON {"signal", "phase", "batch", "ranks"}: the ranks send themselves the signal in that phase
(``training``, ``validation``, ``sampling`` or ``saving``), once, when so many batches have been seen.
"""

from __future__ import annotations

import json
import os
import signal

from pytorch_lightning.callbacks import Callback

from latentdiff.app import build
from latentdiff.training.callbacks.images import ReconstructionGrid, SampleGrid

RANK = int(os.environ.get("LOCAL_RANK", "0"))


class Witness(Callback):
    """Looks on; sends the signal from within the hooks of the phase that is asked for."""

    def __init__(self) -> None:
        keys = os.environ.get("WITNESS_KEYS")
        self.keys = None if keys is None else f"{keys}.{RANK}"
        wanted = json.loads(os.environ.get("WITNESS_SIGNAL", '{"ranks": []}'))
        self.wanted = wanted if RANK in wanted["ranks"] else None

    def on_train_batch_start(self, trainer, module, batch, batch_index) -> None:
        self.now("training", module)
        if self.keys is not None:
            with open(self.keys, "a") as file:
                file.write(json.dumps({"batch": module.counters.batches_seen, "keys": batch.keys}) + "\n")

    def on_validation_batch_start(self, trainer, module, batch, batch_index, dataloader_idx=0) -> None:
        self.now("validation", module)

    def on_save_checkpoint(self, trainer, module, checkpoint) -> None:
        self.now("saving", module)

    def now(self, phase: str, module) -> None:
        if self.wanted and (phase, module.counters.batches_seen) == (self.wanted["phase"], self.wanted["batch"]):
            to_all = len(self.wanted["ranks"]) > 1
            number, self.wanted = signal.Signals[self.wanted["signal"]], None
            if to_all:  # as from a terminal or a scheduler: the loader's workers get it too
                os.killpg(os.getpgrp(), number)
            else:
                os.kill(os.getpid(), number)


def install() -> None:
    """Every trainer that is built from now on has a witness, which is called first."""
    make = build.trainer

    def trainer(*arguments):
        made, witness = make(*arguments), Witness()
        made.callbacks.insert(0, witness)
        for grid in (SampleGrid, ReconstructionGrid):
            _announce(grid, witness)
        return made

    build.trainer = trainer


def _announce(grid: type, witness: Witness) -> None:
    draw = grid._draw

    def announced(self, trainer, module) -> None:
        witness.now("sampling", module)
        draw(self, trainer, module)

    grid._draw = announced

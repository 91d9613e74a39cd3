"""The processes that share an evaluation: how they start, and what they tell each other. One failing ends all."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from omegaconf import DictConfig
from torch import distributed

from latentdiff.app import build as make
from latentdiff.app.processes import check_count
from latentdiff.config.errors import InputError, RunError

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""For the other processes: a share of many images takes long."""


class _ElsewhereError(Exception):
    """What another rank has met."""

    def __init__(self, error: InputError | RunError):
        super().__init__(str(error))
        self.error = error


@dataclass
class Ranks:
    """This process among ``count``. Every exchange is one and the same collective, so that a rank that has failed can
    tell the others whichever they come to next."""

    rank: int
    count: int
    device: torch.device
    precision: torch.dtype | None
    """Of autocast, None for float32."""
    _sign: Path | None = None
    _parent: int = 0

    @property
    def first(self) -> bool:
        """Whether this one speaks and writes."""
        return self.rank == 0

    def barrier(self) -> None:
        self._exchange(None)

    def broadcast(self, value: T) -> T:
        """Rank 0's, a small object; what the others give is not read."""
        return self._exchange(value if self.first else None)[0]

    def check(self) -> None:
        """To be called now and then during long work on one's own: ends it where another rank has failed."""
        if self._sign is None or self.count == 1:
            return
        if self._sign.exists():
            self.barrier()
        if not self.first and os.getppid() != self._parent:
            raise RunError("the process that started this one has ended")

    @contextmanager
    def together(self, sign: Path) -> Iterator[None]:
        """Makes a fault of one rank the fault of all: rank 0 raises it, the others leave in silence.

        ``sign`` is a file that is there while a fault waits to be told (see ``check``); its folder is seen by all.
        """
        if self.count == 1:
            yield
            return
        if self.first:
            sign.unlink(missing_ok=True)
        self.barrier()
        self._sign, self._parent = sign, os.getppid()
        try:
            yield
            self.barrier()
        except _ElsewhereError as told:
            self._leave(told.error)
        except Exception as error:
            known = isinstance(error, InputError | RunError)
            if not known and not self.first:
                traceback.print_exc()
            about = error if known else RunError(f"rank {self.rank} failed, its message is above: {error}")
            self._tell(about, sign)
            self._leave(error if self.first else about)
        finally:
            self._sign = None
            if self.first:
                sign.unlink(missing_ok=True)

    def _leave(self, error: Exception) -> None:
        """Lightning and torchrun kill the others where one leaves with an error: rank 0 has to speak before."""
        if self.first:
            raise error
        sys.exit(0)

    def _tell(self, error: InputError | RunError, sign: Path) -> None:
        try:
            sign.touch()
            self._exchange(None, error)
        except (OSError, RunError, _ElsewhereError):
            pass  # the others are gone, or have told it themselves

    def _exchange(self, value: object, fault: InputError | RunError | None = None) -> list:
        """What every rank gives, in their order."""
        if self.count == 1:
            return [value]
        given: list = [None] * self.count
        told = None if fault is None else (isinstance(fault, InputError), str(fault))
        try:
            distributed.all_gather_object(given, (told, value))
        except RuntimeError as error:
            raise RunError("another process of this command has ended; see what it said") from error
        faults = [told for told, _ in given if told is not None]
        if faults:
            refused, text = faults[0]
            raise _ElsewhereError(InputError(text) if refused else RunError(text))
        return [each for _, each in given]


def launched(trainer_node: DictConfig) -> Ranks:
    """The processes that a trainer's configuration asks for: those of torchrun or srun, else started here.

    Raises InputError for a trainer that shards the model, for a device that is not there, and where a launcher started
    another number of processes.
    """
    if "FullySharded" in str(trainer_node.strategy):
        raise InputError("trainer: every process of an evaluation holds the whole model; use trainer=ddp or ddp_cpu")
    count = make.processes(trainer_node)
    check_count(count)
    precision = make.autocast_dtype(trainer_node.precision, trainer_node.accelerator)
    if count == 1:
        return Ranks(0, 1, make.device(trainer_node)[0], precision)
    if trainer_node.strategy == "auto":
        raise InputError(f"trainer: {count} devices are shared by processes; use trainer=ddp, or ddp_cpu without GPUs")
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # who registered where
    strategy = DDPStrategy(process_group_backend="gloo", timeout=PATIENCE)  # nothing but small objects is exchanged
    where = {"devices": trainer_node.devices, "num_nodes": trainer_node.get("num_nodes", 1)}
    try:
        fabric = Fabric(accelerator=trainer_node.accelerator, strategy=strategy, **where)
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise InputError(f"trainer: {error}") from error
    fabric.launch()
    return Ranks(fabric.global_rank, fabric.world_size, fabric.device, precision)

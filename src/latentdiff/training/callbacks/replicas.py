"""Weights that should be the same on every rank, compared."""

from __future__ import annotations

from collections import Counter

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from latentdiff.config.errors import RunError
from latentdiff.training.callbacks.at_least import at_least_one
from latentdiff.training.parallel import is_sharded

AVERAGES = ("ema.", "power_ema.")


class ReplicaError(RunError):
    """The ranks no longer train the same model."""


class ReplicaCheck(Callback):
    """Every ``every`` batches compares a checksum of each trained weight and each average over the ranks.

    The checksum is the sum of the elements' bits as integers: one pass over the weights, eight bytes per tensor on the
    network. A difference (a faulty device, a gradient that was not reduced) stops all ranks with a ReplicaError, which
    names the ranks that differ from most and the first tensor. Sharded weights have no replicas.

    Args:
        every: batches between comparisons.
    """

    def __init__(self, *, every: int = 1000):
        self.every = at_least_one("replicas.every", every)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: object) -> None:
        if trainer.world_size > 1 and not is_sharded(module) and module.counters.batches_seen % self.every == 0:
            compare(module)


@torch.no_grad()
def compare(module: pl.LightningModule) -> None:
    """Raises ReplicaError, on all ranks, where trained weights or averages differ; to be called on every rank."""
    kept = {n: p for n, p in module.named_parameters() if p.requires_grad or n.startswith(AVERAGES)}
    own = torch.stack([checksum(p) for p in kept.values()])
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    sums = torch.stack(every)
    differs = (sums != sums[0]).any(0)
    if not differs.any():
        return
    first = int(differs.int().argmax())
    found = sums[:, first].tolist()
    usual = Counter(found).most_common(1)[0][0]
    odd = [rank for rank, value in enumerate(found) if value != usual]
    who = "ranks 0 and 1 differ" if len(found) == 2 else f"rank {', '.join(map(str, odd))} differs from the others"
    raise ReplicaError(
        f"after batch {module.counters.batches_seen} the weights are not the same on all ranks: {who}, first in "
        f"'{list(kept)[first]}', in {int(differs.sum())} of {len(kept)} tensors. Resume from a checkpoint before it; "
        "if it is always the same rank, its device is at fault"
    )


def checksum(tensor: Tensor) -> Tensor:
    """Sum of the bits of each element as a signed integer, int64 (), on the tensor's device."""
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(integer).sum(dtype=torch.int64)

"""The values of one batch: gathered on the device, reduced once, fetched once, and refused where not finite."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from latentdiff.nn.precision import at_least_float32
from latentdiff.training.callbacks.metrics_log import NonFiniteError

KEYS_SHOWN = 8
PARTS = ("sum", "count")


class Tally:
    """Terms of the loss sample by sample, and scalars beside them.

    ``settle`` is the only point of a batch where the host waits for the device (restarts of a codebook wait once more).
    It stands between backward pass and update: a flag fetched later would be cheaper by a few launches and would come
    after the damage.
    """

    def __init__(self) -> None:
        self._terms: dict[str, list[Tensor]] = {}
        self._scalars: dict[str, Tensor] = {}
        self._spread: dict[str, Tensor] = {}

    def add(self, terms: dict[str, Tensor]) -> None:
        """Values (n,) of the next n samples, the same terms for all samples of the batch and on all ranks."""
        for name, values in terms.items():
            self._terms.setdefault(name, []).append(at_least_float32(values.detach()))

    def note(self, name: str, value: Tensor) -> None:
        """A scalar; noted again, it is added up."""
        value = at_least_float32(value.detach())
        self._scalars[name] = self._scalars[name] + value if name in self._scalars else value

    def spread(self, name: str, values: Tensor, places: Tensor, bins: int) -> None:
        """Values (n,) of the next n samples, kept apart by their bins, int64 (n,) in [0, bins)."""
        found = in_bins(values.detach(), places, bins)
        self._spread[name] = self._spread[name] + found if name in self._spread else found

    def values(self) -> dict[str, Tensor]:
        """This rank's own, on the CPU: terms (n,) and scalars, before they are averaged."""
        terms = {name: torch.cat(values) for name, values in self._terms.items()}
        return {name: value.cpu() for name, value in {**terms, **self._scalars}.items()}

    def settle(self, *, keys: list[str], number: int) -> dict[str, float]:
        """Means over all samples and ranks, equal on all of them; to be called on every rank, before the update.

        What was spread over bins comes as ``name/sum0``, ``name/sum1``, ... and ``name/count0``, ...: sums over all
        samples and ranks, and how many they were.

        Raises NonFiniteError, on all ranks, where a value is not finite anywhere.
        """
        rows = torch.stack([torch.cat(values) for values in self._terms.values()])
        means = torch.cat([rows.mean(1), torch.stack([*self._scalars.values()])]) if self._scalars else rows.mean(1)
        sums = [found.flatten().to(means.dtype) for found in self._spread.values()]
        every = torch.cat([means, *sums])
        if _ranks() > 1:
            dist.all_reduce(every)
            every[: len(means)] /= _ranks()
        names = [f"{n}/{what}{i}" for n, found in self._spread.items() for what in PARTS for i in range(found.shape[1])]
        values = dict(zip([*self._terms, *self._scalars, *names], every.tolist()))
        bad = [name for name in (*self._terms, *self._scalars) if not math.isfinite(values[name])]
        if bad:
            raise NonFiniteError(self._message(bad, rows, keys, number))
        return values

    def _message(self, bad: list[str], rows: Tensor, keys: list[str], number: int) -> str:
        finite = dict(zip(self._terms, torch.isfinite(rows).tolist()))
        own = {name: [key for key, good in zip(keys, finite.get(name, [])) if not good] for name in bad}
        every = [own]
        if _ranks() > 1:
            every = [None] * _ranks()
            dist.all_gather_object(every, own)
        found = "; ".join(name + _shown([key for rank in every for key in rank[name]]) for name in bad)
        return f"batch {number} (counted from 0): {found}: not finite"


def in_bins(values: Tensor, places: Tensor, bins: int) -> Tensor:
    """Sum of the values (n,) in each bin, and how many they are: (2, bins). Repeated, it is the same on a GPU too."""
    values = at_least_float32(values)[:, None]
    inside = places[:, None] == torch.arange(bins, device=places.device)
    return torch.stack([torch.where(inside, values, 0).sum(0), inside.to(values.dtype).sum(0)])


def _shown(keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    return f" (samples {', '.join(keys[:KEYS_SHOWN])}{more})"


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

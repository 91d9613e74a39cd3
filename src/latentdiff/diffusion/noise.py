"""Random draws that depend on what they are for, not on who makes them or when.

Every draw has its own generator, seeded by a hash of its key. A CPU generator uses the low 32 bits of its seed, so two
keys among n share a stream with probability about n^2 / 2^33.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.types import Batch


def stable_hash(*parts: int | str) -> int:
    """64 bits that are the same in every process and on every machine (blake2b; ``hash()`` is salted)."""
    text = repr(tuple(part if isinstance(part, str) else int(part) for part in parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def keyed_generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator seeded by the hash of ``parts``."""
    return torch.Generator(device=device).manual_seed(stable_hash(*parts))


class Draws:
    """The draws for samples ``start`` to ``start + count`` of a global batch of ``total``.

    Each is made for the whole global batch from a generator keyed by (seed, batch number, name), and the own rows are
    returned: however the batch is split over ranks, each sample gets the same numbers. CPU and CUDA generators differ.
    """

    def __init__(
        self, *, seed: int, number: int, start: int, count: int, total: int, device: torch.device | str = "cpu"
    ):
        """Raises ValueError where the rows are not inside the global batch."""
        if start < 0 or count < 0 or start + count > total:
            raise ValueError(f"rows {start} to {start + count} are not inside a global batch of {total}")
        self.seed, self.number, self.total = seed, number, total
        self.rows = slice(start, start + count)
        self.device = torch.device(device)
        self.prefix = ""

    @classmethod
    def of(cls, batch: Batch, *, seed: int, number: int, device: torch.device | str) -> Draws:
        """Those for the samples of ``batch``, a part of the global batch ``number`` of training."""
        return cls(
            seed=seed, number=number, start=batch.start, count=len(batch), total=batch.global_size, device=device
        )

    def under(self, name: str) -> Draws:
        """The draws of a part called ``name``: with names of their own, none is also drawn by another part."""
        inner = copy(self)
        inner.prefix = f"{self.prefix}{name}/"
        return inner

    def on(self, device: torch.device | str) -> Draws:
        """The same draws, made on another device (whose generator gives other numbers)."""
        moved = copy(self)
        moved.device = torch.device(device)
        return moved

    def normal(self, name: str, shape_per_sample: tuple[int, ...] = ()) -> Tensor:
        """Standard normal float32 (count, *shape_per_sample); the same ``name`` gives the same draw again."""
        return self._draw(torch.randn, name, shape_per_sample)

    def uniform(self, name: str, shape_per_sample: tuple[int, ...] = ()) -> Tensor:
        """Uniform in [0, 1), float32 (count, *shape_per_sample)."""
        return self._draw(torch.rand, name, shape_per_sample)

    def stratified(self, name: str) -> Tensor:
        """Uniform in [0, 1), float32 (count,), evenly spread over the global batch: ``(u + i / total) mod 1``.

        One common u: each value alone is uniform, and the global batch, however it is split over ranks and
        micro-batches, has one value in each of its ``total`` equal intervals. The variance that t gives to the mean
        loss of a batch falls with 1 / total^2 instead of 1 / total (VDM, arXiv:2107.00630, appendix I.1).
        """
        generator = keyed_generator(self.seed, self.number, self.prefix + name, device=self.device)
        offset = torch.rand((), generator=generator, device=self.device, dtype=torch.float32)
        places = torch.arange(self.total, device=self.device, dtype=torch.float32) / self.total
        return ((offset + places) % 1.0)[self.rows]

    def _draw(self, law: Callable[..., Tensor], name: str, shape_per_sample: tuple[int, ...]) -> Tensor:
        generator = keyed_generator(self.seed, self.number, self.prefix + name, device=self.device)
        shape = (self.total, *shape_per_sample)
        return law(shape, generator=generator, device=self.device, dtype=torch.float32)[self.rows]


def offset(noise: Tensor, draws_normal: Tensor, strength: float) -> Tensor:
    """Noise with one more draw per channel, shared by all its places: ``noise + strength draws_normal``.

    The mean of an image, which white noise hardly touches, is then destroyed as well, and the network learns to make
    it (N. Guttenberg, "Diffusion with offset noise", 2023; strength about 0.1). Channel means have variance
    ``strength^2 + 1 / (h w)``, single values ``1 + strength^2``.

    Args:
        noise: (B, C, h, w), standard normal.
        draws_normal: (B, C, 1, 1), standard normal.
        strength: at least 0; 0 gives ``noise`` itself.

    Raises:
        InputError: a negative strength.
    """
    if strength < 0:
        raise InputError(f"offset noise: expected a strength of at least 0 (0 = none, 0.1 is usual), got {strength}")
    return noise if strength == 0 else noise + strength * draws_normal


def seeded_noise(seeds: list[int], key: int | str, shape_per_sample: tuple[int, ...]) -> Tensor:
    """Standard normal float32 (len(seeds), *shape_per_sample), made on the CPU.

    Row i depends on ``seeds[i]`` and ``key`` alone: neither its batch nor the device it is moved to changes it.
    """
    rows = [
        torch.randn(shape_per_sample, generator=keyed_generator(seed, key), device="cpu", dtype=torch.float32)
        for seed in seeds
    ]
    return torch.stack(rows)

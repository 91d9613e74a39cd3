"""What the bottlenecks with a finite set of codes share."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from latentdiff.config.errors import InputError


def straight_through(z: Tensor, quantised: Tensor) -> Tensor:
    """The value of ``quantised``, to the bit, with the gradient of ``z`` (arXiv:1711.00937, section 3.2)."""
    return quantised.detach() + (z - z.detach())


def counts_of(indices: Tensor, entries: int, dtype: torch.dtype) -> Tensor:
    """How often each code occurs, (entries,), exact up to 2^24."""
    flat = indices.flatten()
    ones = torch.ones(flat.shape, dtype=dtype, device=flat.device)
    return torch.zeros(entries, dtype=dtype, device=flat.device).index_add_(0, flat, ones)


def use_of_codes(counts: Tensor) -> dict[str, Tensor]:
    """Of counts (entries,): "perplexity", exp of the codes' entropy in nats, and "usage", the share that occurs."""
    p = counts / counts.sum()
    return {"perplexity": torch.special.entr(p).sum().exp(), "usage": (counts > 0).to(counts.dtype).mean()}


def sum_over_ranks(x: Tensor) -> Tensor:
    """``x`` summed in place over all processes, or as it is where there is only one."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def check_indices(indices: Tensor, entries: int) -> None:
    """Raises InputError unless ``indices`` are integers in [0, entries)."""
    if indices.is_floating_point() or indices.is_complex() or indices.dtype is torch.bool:
        raise InputError(f"codebook indices must be integers, got {indices.dtype}; give what indices() returned")
    if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= entries):
        raise InputError(
            f"codebook index out of range: the codebook has the indices 0 to {entries - 1}, "
            f"got {int(indices.min())} to {int(indices.max())}; the codes come from another autoencoder"
        )


def check_latent(z: Tensor, channels: int) -> None:
    """Raises InputError unless ``z`` is (B, channels, h, w)."""
    if z.ndim != 4 or z.shape[1] != channels:
        raise InputError(
            f"the codebook quantises latents of shape (B, {channels}, h, w), got {tuple(z.shape)}; "
            "the latents come from another autoencoder"
        )

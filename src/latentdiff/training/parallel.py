"""Networks and their averages sharded over all processes (FSDP2), with the checkpoints of one process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from latentdiff.models.text_transformer import TextBlock
from latentdiff.nn.attention import AttentionBlock
from latentdiff.nn.dit_blocks import DiTBlock
from latentdiff.nn.resnet import ResBlock
from latentdiff.nn.unet_stages import Stage

UNITS = (Stage, ResBlock, AttentionBlock, DiTBlock, TextBlock)
"""What is gathered at once, the outermost of them; the rest of a network is one more unit."""


def shard(
    module: pl.LightningModule, networks: Sequence[str], trained: nn.Module, averages: Sequence[nn.Module]
) -> None:
    """Shards the submodules ``networks`` of ``trained`` and of its ``averages``, where the trainer shards at all.

    Each is trained, and called as a whole (``forward``). All else stays whole on every rank, and
    ``average_gradients`` averages its gradients. Sharding twice is sharding once.
    """
    if module.device_mesh is None:
        return
    mesh = module.device_mesh["data_parallel"]
    for name in networks:
        for copy in (trained, *averages):
            network = copy.get_submodule(name)
            if isinstance(network, FSDPModule):
                continue
            for unit in _outermost(network):
                fully_shard(unit, mesh=mesh)
            # Until the backward pass the last layer of what trains stays gathered: stage one differentiates there.
            fully_shard(network, mesh=mesh, reshard_after_forward=None if copy is trained else True)


def trained_networks(module: nn.Module, kind: type[nn.Module]) -> list[str]:
    """Names of the submodules of that kind that have trained weights."""
    found = ((name, part) for name, part in module.named_modules() if isinstance(part, kind))
    return [name for name, part in found if any(p.requires_grad for p in part.parameters())]


def is_sharded(module: pl.LightningModule) -> bool:
    """Whether forward passes of its networks are collective: then every rank has to make them."""
    return module.device_mesh is not None


def set_gradient_sync(module: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass ends with gradients averaged and sharded, or keeps them to be added to."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_requires_gradient_sync(wanted, recurse=False)


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """Mean over ranks of the gradients of all weights that are not sharded; to be called on every rank."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None and not isinstance(p.grad, DTensor)]
    if gradients:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(gradient) for part, gradient in zip(parts, gradients)])


@torch.no_grad()
def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """2-norm over all elements, with those of the other ranks where sharded; then to be called on every rank."""
    tensors = list(tensors)
    sharded = [local(t) for t in tensors if isinstance(t, DTensor)]
    norm = nn.utils.get_total_norm([t for t in tensors if not isinstance(t, DTensor)])
    if not sharded:
        return norm
    squared = nn.utils.get_total_norm(sharded).square()
    dist.all_reduce(squared)
    return (squared + norm.to(squared).square()).sqrt()


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scales the gradients so that their norm over all of them is at most ``limit``; the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = total_norm(gradients)
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([local(gradient) for gradient in gradients], factor)
    return norm


def local(tensor: Tensor) -> Tensor:
    """This rank's part, in the same memory; the tensor itself where it is not sharded. Not differentiable."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or gathered from all ranks where it is sharded; then to be called on every rank."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(values: Mapping[str, Any], *, keep: bool) -> dict[str, Any]:
    """Sharded tensors whole and in main memory, one after the other; to be called on every rank, empty unless kept."""
    found = {}
    for name, value in values.items():
        value = whole(value).cpu() if isinstance(value, DTensor) else value
        if keep:
            found[name] = value
    return found


def split_like(full: Tensor, other: Tensor) -> Tensor:
    """``full``, the same on every rank, sharded as ``other`` is."""
    if not isinstance(other, DTensor):
        return full
    return distribute_tensor(full.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


class FullySharded(ModelParallelStrategy):
    """FSDP2 over all processes, on GPUs or CPUs; the module says in ``configure_model`` what is sharded.

    Lightning's own writes one file per rank. Here checkpoints hold whole tensors, in the order of an optimiser in one
    process, so that any number of processes goes on from them: gathered one tensor at a time, kept in the memory of
    rank 0, and read by every rank.

    Args:
        process_group_backend: None for nccl on GPUs, gloo on CPUs.
    """

    def __init__(self, *, process_group_backend: str | None = None):
        super().__init__(tensor_parallel_size=1, process_group_backend=process_group_backend)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            optimizer.param_groups = split_groups(optimizer.param_groups)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Of rank 0; empty on the others, which take part in gathering it."""
        return gathered(self.lightning_module.state_dict(), keep=self.is_global_zero)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        now = self.lightning_module.state_dict()
        given = checkpoint["state_dict"]
        state = {name: split_like(value, now[name]) if name in now else value for name, value in given.items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Of rank 0; empty on the others, which take part in gathering it."""
        optimizer = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        with _as_built(optimizer):
            found = optimizer.state_dict()
        state = {i: gathered(values, keep=self.is_global_zero) for i, values in found["state"].items()}
        return {**found, "state": state} if self.is_global_zero else {}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, given in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            with _as_built(optimizer):
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                state = {
                    i: {
                        n: split_like(v, parameters[i]) if v.shape == parameters[i].shape else v
                        for n, v in found.items()
                    }
                    for i, found in given["state"].items()
                }
                optimizer.load_state_dict({**given, "state": state})

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str, storage_options: Any | None = None) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)


def split_groups(groups: list[dict]) -> list[dict]:
    """Groups in which all or none are sharded, as torch's optimisers want them; ``join_groups`` is the inverse."""
    found = []
    for number, group in enumerate(groups):
        for sharded in (True, False):
            places = [i for i, p in enumerate(group["params"]) if isinstance(p, DTensor) is sharded]
            if places:
                lists = {key: [group[key][i] for i in places] for key in PER_PARAMETER & group.keys()}
                found.append({**group, **lists, "of": number, "places": places})
    return found


def join_groups(groups: list[dict]) -> list[dict]:
    joined: dict[int, dict] = {}
    for group in groups:
        lists = {key: dict(zip(group["places"], group[key])) for key in PER_PARAMETER & group.keys()}
        before = joined.setdefault(group["of"], {k: v for k, v in group.items() if k not in ("of", "places")} | lists)
        for key, values in lists.items():
            before[key] |= values
    return [
        group | {key: [value for _, value in sorted(group[key].items())] for key in PER_PARAMETER & group.keys()}
        for group in joined.values()
    ]


PER_PARAMETER = {"params", "param_names"}
"""Entries of a group that are lists with one place per parameter."""


@contextmanager
def _as_built(optimizer: Optimizer) -> Iterator[None]:
    """The optimiser with the groups that it has in one process."""
    optimizer.param_groups = join_groups(optimizer.param_groups)
    try:
        yield
    finally:
        optimizer.param_groups = split_groups(optimizer.param_groups)


def _outermost(network: nn.Module) -> Iterator[nn.Module]:
    for child in network.children():
        if isinstance(child, UNITS):
            yield child
        else:
            yield from _outermost(child)

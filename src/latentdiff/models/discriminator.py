"""The patch discriminator of stage one (arXiv:1611.07004, section 3.2.2; arXiv:2012.09841)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.config.errors import InputError
from latentdiff.nn.norms import GroupNorm
from latentdiff.nn.precision import at_least_float32


class PatchDiscriminator(nn.Module):
    """Image (B, in_channels, H, W) in [-1, 1] -> map of logits (B, 1, h, w), high for real; h is about H / 2^layers.

    ``layers`` = 3, ``channels`` = 64 and ``norm`` = "batch" are LDM's discriminator, its parameter names included
    (``main.N``). Real and generated images are judged in two calls, so that no norm mixes them.

    Args:
        channels: width of the first layer; it doubles with each, up to eightfold.
        layers: convolutions of stride 2.
        in_channels: of the image.
        norm: "group" (the default: every image by itself); "instance"; "none"; or "batch", whose statistics mix the
            images of a batch. It has neither of the usual traps: statistics are those over all ranks, and there are
            no running averages that one pass changes under another. They are those of a micro-batch where
            ``task.micro_batch`` cuts the batch, which then changes the result.
        norm_groups: groups of "group".

    Raises InputError for an unknown norm.
    """

    def __init__(
        self,
        *,
        channels: int = 64,
        layers: int = 3,
        in_channels: int = 3,
        norm: Literal["group", "batch", "instance", "none"] = "group",
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        norms: dict[str, Callable[[int], nn.Module]] = {
            "group": lambda width: GroupNorm(width, norm_groups),
            "batch": BatchNorm,
            "instance": lambda width: GroupNorm(width, width),
            "none": lambda width: nn.Identity(),
        }
        if norm not in norms:
            raise InputError(f"PatchDiscriminator: norm must be one of {', '.join(norms)}; got {norm!r}")
        widths = [channels * min(2**n, 8) for n in range(layers + 1)]
        main: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for n in range(1, layers + 1):
            stride = 2 if n < layers else 1
            main += [
                nn.Conv2d(widths[n - 1], widths[n], 4, stride=stride, padding=1, bias=norm != "batch"),
                norms[norm](widths[n]),
                nn.LeakyReLU(0.2),
            ]
        main.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*main)
        self.apply(_init)

    def forward(self, image: Tensor) -> Tensor:
        return self.main(image)


class BatchNorm(nn.Module):
    """Normalises by the statistics of the present batch over all ranks (arXiv:1502.03167), on every device.

    Statistics and their gradient are float32 or wider; differentiable twice. Nothing is remembered.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        with torch.autocast(x.device.type, enabled=False):
            wide = at_least_float32(x)
            mean = differentiable.all_reduce(wide.mean((0, 2, 3))) / dist.get_world_size()
            centred = wide - mean.view(-1, 1, 1)
            variance = differentiable.all_reduce(centred.square().mean((0, 2, 3))) / dist.get_world_size()
            scale = self.weight * torch.rsqrt(variance + self.eps)
            return (centred * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)).to(x.dtype)


def _init(module: nn.Module) -> None:
    """Weights N(0, 0.02), norm gains N(1, 0.02) (arXiv:1511.06434, section 3)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, BatchNorm | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)

"""What conditioners read of a batch, with one message where it is missing."""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.types import Batch, Codec


def field_of(batch: Batch, name: str, remedy: str) -> Tensor:
    """The batch's tensor ``name``; an InputError that ends in ``remedy`` where the batch has none."""
    value = getattr(batch, name)
    if value is None:
        raise InputError(f"this conditioner reads {name.replace('_', ' ')}, but the batch has none: {remedy}")
    return value


def codec_of(codec: Codec | None) -> Codec:
    """Raises InputError where there is none: the size of a spatial condition is that of the codec's latents."""
    if codec is None:
        raise InputError("this conditioner works at the size of the latents: call it with the first stage's codec")
    return codec


def latent_size(height: int, width: int, codec: Codec, what: str) -> tuple[int, int]:
    """Of latents for ``height`` x ``width`` pixels. Raises InputError unless both are multiples of the factor."""
    if height % codec.factor or width % codec.factor:
        raise InputError(
            f"{what}: expected a height and a width that are multiples of the first stage's factor {codec.factor}, "
            f"got {height} x {width}"
        )
    return height // codec.factor, width // codec.factor


def unit_range(image: Tensor) -> Tensor:
    """uint8 -> [-1, 1], in float64 where that is torch's default (``precision=64-true``), else in float32."""
    double = torch.get_default_dtype() is torch.float64
    return image.to(torch.float64 if double else torch.float32) / 127.5 - 1.0

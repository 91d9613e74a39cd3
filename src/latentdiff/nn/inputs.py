"""What goes into a backbone, checked and joined."""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.types import Conditioning


def joined_input(
    x: Tensor,
    cond: Conditioning,
    *,
    name: str,
    in_channels: int,
    factor: int,
    context_dim: int | None,
    vector_dim: int | None,
    num_classes: int | None,
) -> Tensor:
    """The latent (B, C, h, w) and the spatial condition (B, S, h, w) along the channels -> (B, in_channels, h, w).

    Raises InputError, which begins with the backbone's ``name``, where the latent's or the conditioning's shapes are
    not those that the backbone was built for, or where a part is missing or too many.
    """
    _check_parts(cond, name, context_dim, vector_dim, num_classes)
    if cond.spatial is not None:
        if cond.spatial.shape[-2:] != x.shape[-2:]:
            raise InputError(
                f"{name}: the spatial condition is {tuple(cond.spatial.shape[-2:])}, "
                f"the latent {tuple(x.shape[-2:])}; resize it to the latent's size"
            )
        x = torch.cat([x, cond.spatial.to(x.dtype)], dim=1)
    if x.shape[1] != in_channels:
        raise InputError(
            f"{name}: latent and spatial condition together have {x.shape[1]} channels, in_channels is {in_channels}"
        )
    if x.shape[-2] % factor or x.shape[-1] % factor:
        raise InputError(
            f"{name}: height and width of the latent must be multiples of {factor}, got {tuple(x.shape[-2:])}; "
            "change the image size, or use fewer levels or a smaller patch"
        )
    return x


def _check_parts(
    cond: Conditioning, name: str, context_dim: int | None, vector_dim: int | None, num_classes: int | None
) -> None:
    for part, value, width in (("tokens", cond.tokens, context_dim), ("vector", cond.vector, vector_dim)):
        found = None if value is None else value.shape[-1]
        if found != width:
            raise InputError(
                f"{name}: the conditioning's {part} have width {found}, the {name} was built for {width}; "
                "make the conditioner and the backbone agree (context_dim, vector_dim)"
            )
    if (cond.label is None) != (num_classes is None):
        raise InputError(
            f"{name}: the conditioning {'has no' if cond.label is None else 'has a'} class label, the {name} was built "
            f"with num_classes={num_classes}; make the conditioner and the backbone agree"
        )

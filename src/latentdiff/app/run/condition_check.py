"""Whether a conditioner gives what its configuration says, before a first stage is trained for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from latentdiff.conditioning.class_label import ClassIndex, ClassTokens, ClassVector
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.types import Batch


@dataclass(frozen=True)
class BlankCodec:
    """Stands in for a first stage that is not trained yet: latents of its shape, all zero."""

    channels: int
    factor: int

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        b, _, height, width = image.shape
        zeros = torch.zeros(b, self.channels, height // self.factor, width // self.factor)
        return zeros, zeros

    def draw(self, moments: tuple[Tensor, Tensor], noise: Tensor) -> Tensor:
        return moments[0]


@torch.no_grad()
def check_conditioner(cfg: DictConfig, batch: Batch, make: Callable[[DictConfig], nn.Module] = build) -> None:
    """The conditioner can be built (its weights and vocabulary are there), reads ``batch`` as the data make it, and
    gives what its configuration says, which backbone and data rely on. What ``make`` makes of its node is not kept."""
    codec = BlankCodec(cfg.latent.channels, cfg.latent.factor)
    try:
        conditioner = make(cfg.conditioner.module).eval()
        conditioner(batch, codec)
        null = conditioner.null(batch, codec)
    except InputError as error:
        raise InputError(f"conditioner: {error}") from error
    gives = {
        "width": None if null.tokens is None else null.tokens.shape[-1],
        "vector": None if null.vector is None else null.vector.shape[-1],
        "spatial": 0 if null.spatial is None else null.spatial.shape[1],
        "rows": None if null.label is None else int(null.label.max()) + 1,
    }
    for name, found in gives.items():
        if (said := cfg.conditioner.get(name, 0 if name == "spatial" else None)) != found:
            raise InputError(f"conditioner.{name}: it says {said}, the conditioner gives {found}; make them agree")
    for part in conditioner.modules():
        if isinstance(part, ClassTokens | ClassVector | ClassIndex) and part.classes != cfg.conditioner.classes:
            raise InputError(
                f"conditioner.classes: it says {cfg.conditioner.classes}, {type(part).__name__} has {part.classes}; "
                "set conditioner.classes alone, the module follows it"
            )

"""Encoded captions out of the batch, in the place of the frozen text encoder that made them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from latentdiff.conditioning.dropping import check_drop, dropped_samples
from latentdiff.conditioning.reading import field_of
from latentdiff.diffusion.noise import Draws
from latentdiff.types import Batch, Codec, Conditioning

_REMEDY = "train with data=cached, from a cache with text"


class CachedText(nn.Module):
    """``Batch.text_tokens``, ``text_mask`` and ``text_vector`` as conditioning, float32.

    It gives what the encoder would (``OpenClipText``, ``HfText``), drops by the same draws, and has as little to save.

    Args:
        empty: the encoded empty caption, the null condition: ``tokens`` (L, D), ``mask`` (L,) and ``vector`` (V,), as
            far as the encoder gives them.
        drop: probability that training sees the empty caption instead.

    Raises:
        InputError: a ``drop`` that is no probability; when called, a batch without one of the parts.
    """

    parts = ("text",)
    """What ``alone`` gives, each of which guidance can scale by itself."""

    def __init__(self, *, empty: Mapping[str, Tensor], drop: float = 0.1):
        super().__init__()
        self.drop = check_drop(drop)
        self.names = tuple(empty)
        for name, value in empty.items():
            self.register_buffer(f"empty_{name}", _single(value), persistent=False)

    def forward(self, batch: Batch, codec: Codec | None = None, draws: Draws | None = None) -> Conditioning:
        found = {name: _single(field_of(batch, f"text_{name}", _REMEDY)) for name in self.names}
        cond = Conditioning(**found)
        if draws is None or self.drop == 0:
            return cond
        return cond.where(~self.dropped(draws)["text"], self.null(batch, codec))

    def alone(self, batch: Batch, codec: Codec | None = None) -> dict[str, Conditioning]:
        return {"text": self(batch, codec)}

    def null(self, batch: Batch, codec: Codec | None = None) -> Conditioning:
        rows = {name: getattr(self, f"empty_{name}") for name in self.names}
        return Conditioning(**{name: row.expand(len(batch), *row.shape) for name, row in rows.items()})

    def dropped(self, draws: Draws) -> dict[str, Tensor]:
        return {"text": dropped_samples(draws, "text", self.drop)}


def _single(values: Tensor) -> Tensor:
    """In float32, masks as they are."""
    return values if values.dtype is torch.bool else values.float()

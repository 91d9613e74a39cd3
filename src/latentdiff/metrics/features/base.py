"""Image features that sets of images are compared by."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from latentdiff.types import Batch

POOL = "pool"
"""The layer that every extractor has: one vector per image, for distances between sets."""
LOGITS = "logits"
"""Of a classifier: what its softmax reads."""
SPATIAL = "spatial"
"""Of the 2015 Inception: what sFID reads."""
TEXT = "text"
"""Of CLIP: the caption's embedding, beside the image's in ``POOL``."""
CAPTION_CUT = "caption_cut"
"""Beside ``TEXT``: 1 where the caption was longer than CLIP reads, else 0."""


class Features(Protocol):
    """A network that looks at images.

    ``name`` says exactly which features these are, weights included: numbers of different names are never comparable.
    ``layers``: name -> width of what it gives. ``published``: these are the features of the field's published FID.
    """

    name: str
    layers: Mapping[str, int]
    published: bool

    def __call__(self, images: Tensor, batch: Batch, layers: Collection[str]) -> dict[str, Tensor]:
        """uint8 (B, 3, H, W), made for ``batch`` -> float32 (B, width) of each of ``layers``."""
        ...

    def to(self, device: torch.device) -> Features: ...

    def describe(self) -> dict[str, object]:
        """For the protocol card: hash of the weights, how images are resized."""
        ...


@runtime_checkable
class EmbedsCaptions(Protocol):
    """Features with the layer ``TEXT``. ``text_name``: as ``name``, and of all that is done to captions."""

    text_name: str


def check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 images (B, 3, H, W); got {images.dtype} {tuple(images.shape)}")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 without autocast and TF32; convolutions by deterministic algorithms that no benchmark chooses."""
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), cudnn:
            yield
    finally:
        torch.set_float32_matmul_precision(before)

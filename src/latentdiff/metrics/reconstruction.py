"""How faithfully stage one gives an image back."""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.metrics.gather import Indexed
from latentdiff.types import Batch


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image in dB, (B,), float32; infinite for equal images.

    Both (B, 3, H, W), each uint8 or float in [-1, 1]; compared over [0, 1] with peak 1: -10 log10(mean squared error).
    """
    if image.shape != reference.shape or image.ndim != 4:
        raise ValueError(f"expected two (B, C, H, W) of one shape; got {tuple(image.shape)}, {tuple(reference.shape)}")
    error = (_unit_range(image) - _unit_range(reference)).square().mean(dim=(1, 2, 3))
    return -10.0 * error.log10()


class Psnr:
    """Mean over images of the PSNR to the batch's own images, as ``{"psnr": dB}``."""

    def __init__(self) -> None:
        self._values = Indexed()

    def update(self, images: Tensor, batch: Batch) -> None:
        """Reconstructions (B, 3, H, W), uint8 or float in [-1, 1], of ``batch.image``."""
        if batch.image is None:
            raise InputError("PSNR needs the batch's own images to compare with, the batch has none")
        self._values.add(psnr(images, batch.image.to(images.device)), batch)

    def compute(self) -> dict[str, float]:
        return {"psnr": float(torch.stack(self._values.gathered()).double().mean())}


def _unit_range(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image.float() / 255.0
    if not image.is_floating_point():
        raise ValueError(f"expected uint8 or float images; got {image.dtype}")
    return (image.float().clamp(-1.0, 1.0) + 1.0) / 2.0

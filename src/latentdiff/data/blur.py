"""Gaussian blur of an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

_REACH = 3.0
"""Standard deviations after which the kernel is cut off."""


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """float (C, H, W) -> the same shape; ``sigma`` in pixels, 0 for none. Border pixels are repeated outwards."""
    if sigma <= 0:
        return image
    radius = math.ceil(_REACH * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    weights = (kernel / kernel.sum()).tolist()
    return weighted_rows(weighted_rows(image, weights).mT, weights).mT


def weighted_rows(image: Tensor, weights: list[float]) -> Tensor:
    """float (C, H, W) -> the same shape: each pixel the weighted sum of those from above to below it, an odd number."""
    reach, height = len(weights) // 2, image.shape[1]
    padded = pad(image, (0, 0, reach, reach), mode="replicate")
    result = torch.zeros_like(image)
    for place, weight in enumerate(weights):
        result.add_(padded[:, place : place + height], alpha=weight)
    return result

"""Holes of images filled from what lies around them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate


def filled(image: Tensor, hole: Tensor) -> Tensor:
    """Smooth values where ``hole`` is 1, the image itself elsewhere; what stands in the hole is not looked at.

    Means of the known pixels are taken on a pyramid of blocks, and each hole pixel takes that of the smallest block
    around it that has any (pull-push: Gortler et al., "The lumigraph", 1996, section 3.4). An encoder sees no edge
    there, as it would at a hole of one colour, whose mark would spread over the latents beside it.

    Args:
        image: float (B, C, H, W).
        hole: float (B, 1, H, W), 1 in the hole and 0 elsewhere.

    Returns:
        Float (B, C, H, W); 0 everywhere where nothing is known.
    """
    known = 1 - hole
    levels = [(image * known, known)]
    while max(levels[-1][1].shape[-2:]) > 1:
        total, weight = levels[-1]
        levels.append((avg_pool2d(total, 2, ceil_mode=True), avg_pool2d(weight, 2, ceil_mode=True)))
    value = torch.zeros_like(levels[-1][0])
    for total, weight in reversed(levels):
        around = interpolate(value, size=total.shape[-2:], mode="bilinear", align_corners=False)
        value = torch.where(weight > 0, total / weight.clamp(min=torch.finfo(weight.dtype).tiny), around)
    return value

"""Images as networks were trained to see them: resized by Pillow, the same on every device."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pil_images(images: Tensor) -> list[Image.Image]:
    """uint8 (B, 3, H, W) -> B images."""
    return [Image.fromarray(row) for row in images.permute(0, 2, 3, 1).cpu().numpy()]


def imagenet_input(images: Tensor, size: int) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 (B, 3, size, size): 8-bit bicubic with antialiasing, sides scaled independently,
    then minus ImageNet's mean, by its standard deviation."""
    shape = (size, size)
    rows = [np.asarray(image.resize(shape, Image.Resampling.BICUBIC)) for image in pil_images(images)]
    x = torch.from_numpy(np.stack(rows)).to(images.device).permute(0, 3, 1, 2).float() / 255
    mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (x - mean) / std

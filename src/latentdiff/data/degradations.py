"""The small image that a super-resolution model starts from: reduced, and degraded as photographs are."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from latentdiff.config.errors import InputError
from latentdiff.data.blur import gaussian_blur
from latentdiff.data.conditions import Frame
from latentdiff.data.sample import Sample
from latentdiff.data.shard_set import ShardSet


@dataclass(frozen=True, kw_only=True)
class Blur:
    """Gaussian blur with ``probability``, its sigma uniform in a range, in pixels of the whole image."""

    probability: float
    sigma: tuple[float, float] = (0.2, 2.0)

    def __post_init__(self) -> None:
        _check("Blur", self.probability, "sigma", self.sigma, 0, 100)

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """uint8 (3, H, W) -> the same."""
        if rng.random() >= self.probability:
            return image
        return _to_uint8(gaussian_blur(image.float(), rng.uniform(*self.sigma)))


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Gaussian noise with ``probability``, independent in each channel, its standard deviation uniform in a range, in
    gray levels of 255."""

    probability: float
    deviation: tuple[float, float] = (1.0, 25.0)

    def __post_init__(self) -> None:
        _check("Noise", self.probability, "deviation", self.deviation, 0, 255)

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """uint8 (3, H, W) -> the same."""
        if rng.random() >= self.probability:
            return image
        deviation = rng.uniform(*self.deviation)
        noise = torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
        return _to_uint8(image.float() + deviation * noise)


@dataclass(frozen=True, kw_only=True)
class Jpeg:
    """JPEG compression with ``probability``, its quality (Pillow's, 1 to 100) a uniform whole number of a range."""

    probability: float
    quality: tuple[int, int] = (30, 95)

    def __post_init__(self) -> None:
        _check("Jpeg", self.probability, "quality", self.quality, 1, 100)

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """uint8 (3, H, W) -> the same."""
        if rng.random() >= self.probability:
            return image
        low, high = self.quality
        file = io.BytesIO()
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        Image.fromarray(pixels).save(file, format="JPEG", quality=int(rng.integers(low, high + 1)))
        return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).contiguous()


class Degraded:
    """uint8 (3, H / factor, W / factor): blurred, reduced, with noise, compressed, in this order (a simplified
    BSRGAN, arXiv:2103.14006, section 3, which shuffles its steps).

    Reduced by torch's antialiased bicubic resize; without ``blur``, ``noise`` and ``jpeg`` that is all. Raises
    InputError where ``factor`` is below 2, which would make the input as large as the output or larger, and, when
    called, where it does not divide the image's size.
    """

    def __init__(
        self, *, factor: int, blur: Blur | None = None, noise: Noise | None = None, jpeg: Jpeg | None = None
    ) -> None:
        if factor < 2:
            raise InputError(
                f"Degraded: factor is {factor}, so the low-resolution input would not be smaller than the image; "
                "expected a whole number of at least 2"
            )
        self.factor = factor
        self.blur = blur
        self.noise = noise
        self.jpeg = jpeg

    def check(self, shards: ShardSet) -> None:
        """Every sample has an image."""

    def __call__(self, sample: Sample, frame: Frame, image: Tensor, rng: np.random.Generator) -> Tensor:
        height, width = frame.out_height, frame.out_width
        if height % self.factor or width % self.factor:
            raise InputError(
                f"Degraded: factor {self.factor} does not divide the image size {height}x{width}; "
                "change data.size, data.buckets or the factor"
            )
        if self.blur is not None:
            image = self.blur(image, rng)
        size = (height // self.factor, width // self.factor)
        image = interpolate(image[None], size=size, mode="bicubic", antialias=True, align_corners=False)[0]
        if self.noise is not None:
            image = self.noise(image, rng)
        if self.jpeg is not None:
            image = self.jpeg(image, rng)
        return image


def _to_uint8(image: Tensor) -> Tensor:
    return image.round().clamp(0, 255).to(torch.uint8)


def _check(who: str, probability: float, name: str, bounds: tuple[float, float], least: float, most: float) -> None:
    if not 0 <= probability <= 1:
        raise InputError(f"{who}: expected a probability from 0 to 1, got {probability}")
    if len(bounds) != 2 or not least <= bounds[0] <= bounds[1] <= most:
        raise InputError(f"{who}: expected {name} as [smallest, largest] within {least} to {most}, got {list(bounds)}")

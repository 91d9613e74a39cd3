"""Images that no diffusion model made, measured by the same code: what a model must beat, and what it cannot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import seeded_noise
from latentdiff.generation.pipeline import to_uint8
from latentdiff.metrics.low_resolution import resized
from latentdiff.types import Batch, Codec


class RealImages:
    """Real images as the samples have them: two sets of real ones are this far apart, and no model need come nearer.

    Args:
        device: where they are measured.
    """

    def __init__(self, *, device: torch.device | str):
        self.device = torch.device(device)

    def __call__(self, batch: Batch, seeds: list[int]) -> Tensor:
        """``batch.image``, uint8 (B, 3, H, W). The seeds do nothing."""
        if batch.image is None:
            raise InputError("real images were asked for, the batch has none")
        return batch.image.to(self.device)

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {"images": "real"}


class BicubicEnlargement:
    """The small images enlarged by bicubic interpolation: super-resolution that invents nothing.

    Args:
        device: where they are made and measured.
    """

    def __init__(self, *, device: torch.device | str):
        self.device = torch.device(device)

    def __call__(self, batch: Batch, seeds: list[int]) -> Tensor:
        """``batch.low_res`` at the size of ``batch.image``, uint8 (B, 3, H, W). The seeds do nothing."""
        if batch.low_res is None or batch.image is None:
            raise InputError("bicubic enlargement needs small images and the originals' size, the batch lacks them")
        return resized(batch.low_res.to(self.device), batch.image.shape[-2:])

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {"enlarged": "bicubic"}


@dataclass(frozen=True)
class LatentMoments:
    """Mean and standard deviation of whitened latents at each place and channel, (C, h, w), over ``count`` images."""

    mean: Tensor
    std: Tensor
    count: int

    @classmethod
    @torch.inference_mode()
    def of(cls, images: Iterable[Tensor], codec: Codec, device: torch.device | str) -> LatentMoments:
        """Of draws of stage one's posterior for uint8 batches (variance of its means plus mean of its variances)."""
        count, total, squares = 0, None, None
        for image in images:
            with torch.autocast(torch.device(device).type, enabled=False):
                mean, std = (m.double() for m in codec.moments(image.to(device).float() / 127.5 - 1.0))
            count += len(image)
            total = mean.sum(0) + (0.0 if total is None else total)
            squares = (mean.square() + std.square()).sum(0) + (0.0 if squares is None else squares)
        if total is None or squares is None:
            raise InputError("moments of latents need at least one image; there is none")
        mean = total / count
        return cls(mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float(), count)


class LatentGaussian:
    """Latents drawn from a Gaussian with the training set's moments, independent at each place and channel, decoded.

    It has the right mean and spread everywhere, and knows neither what belongs together nor any condition.
    """

    def __init__(self, *, codec: Codec, moments: LatentMoments):
        self.codec, self.moments = codec, moments

    @torch.inference_mode()
    def __call__(self, batch: Batch, seeds: list[int]) -> Tensor:
        """uint8 (B, 3, H, W), of the seeds alone."""
        mean, std = self.moments.mean, self.moments.std
        noise = seeded_noise(seeds, "latent gaussian", tuple(mean.shape)).to(mean.device)
        with torch.autocast(mean.device.type, enabled=False):
            return to_uint8(self.codec.decode(mean + std * noise))

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {"law": "independent Gaussian at each place and channel", "fitted_on_images": self.moments.count}

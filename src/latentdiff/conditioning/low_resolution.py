"""A small image that is to be enlarged (LDM, arXiv:2112.10752, section 4.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.conditioning.dropping import check_drop, dropped_samples
from latentdiff.conditioning.reading import codec_of, field_of, latent_size, unit_range
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws, seeded_noise, stable_hash
from latentdiff.types import Batch, Codec, Conditioning


class LowResolution(nn.Module):
    """``Batch.low_res`` -> (B, 3, h, w) in [-1, 1] at the size of the latents, or (B, 4, h, w) with augmentation.

    Where ``factor`` is the codec's own, as in LDM's and Stable Diffusion's upscalers, the small image goes in as it is;
    else it is resized bicubically, with antialiasing. A ``factor`` below the codec's loses detail by that: take a first
    stage of the same factor.

    With ``max_noise`` above 0 the resized image y is given as ``sqrt(1 - s^2) y + s noise`` (the conditioning
    augmentation of arXiv:2106.15282), and s as a fourth channel, the same everywhere: in training s is uniform in
    [0, max_noise] for each sample, else ``level``. It helps with small images unlike those of training: the more they
    differ, the higher the ``level``. Outside training the noise depends on the sample's key alone. The null condition
    is a gray image (zeros), at level 1 where there is one.

    Args:
        factor: height and width of the result over those of the small image; also tells the size of the result where
            a batch has no images.
        drop: probability that training sees the null condition instead.
        max_noise: largest s, at most 1; 0: no augmentation and three channels.
        level: s outside training, at most ``max_noise``.

    Raises:
        InputError: numbers out of range; when called, no codec, a batch without small images, a size that does not fit
            the codec, or small images that are not the image's size over ``factor``.
    """

    parts = ("low_res",)

    def __init__(self, *, factor: int, drop: float = 0.0, max_noise: float = 0.0, level: float = 0.0):
        super().__init__()
        if factor < 2:
            raise InputError(f"LowResolution: expected a factor of at least 2 (the result is larger), got {factor}")
        if not 0 <= level <= max_noise <= 1:
            raise InputError(
                f"LowResolution: expected 0 <= level <= max_noise <= 1, got level {level} and max_noise {max_noise}"
            )
        self.factor, self.drop = factor, check_drop(drop)
        self.max_noise, self.level = max_noise, level

    def forward(self, batch: Batch, codec: Codec | None = None, draws: Draws | None = None) -> Conditioning:
        y = self._resized(batch, codec_of(codec))
        if self.max_noise:
            y = self._augmented(y, batch.keys, draws)
        if draws is None or self.drop == 0:
            return Conditioning(spatial=y)
        return Conditioning(spatial=y).where(~self.dropped(draws)["low_res"], self.null(batch, codec))

    def null(self, batch: Batch, codec: Codec | None = None) -> Conditioning:
        gray = torch.zeros_like(self._resized(batch, codec_of(codec)))
        if not self.max_noise:
            return Conditioning(spatial=gray)
        return Conditioning(spatial=torch.cat([gray, torch.ones_like(gray[:, :1])], dim=1))

    def alone(self, batch: Batch, codec: Codec | None = None) -> dict[str, Conditioning]:
        return {"low_res": self(batch, codec)}

    def dropped(self, draws: Draws) -> dict[str, Tensor]:
        return {"low_res": dropped_samples(draws, "low_res", self.drop)}

    def _resized(self, batch: Batch, codec: Codec) -> Tensor:
        small = field_of(batch, "low_res", "add latentdiff.data.degradations.Degraded to the data's conditions")
        height, width = (self.factor * side for side in small.shape[-2:])
        if batch.image is not None and batch.image.shape[-2:] != (height, width):
            raise InputError(
                f"LowResolution: expected small images of the image's size {tuple(batch.image.shape[-2:])} over the "
                f"factor {self.factor}, got {tuple(small.shape[-2:])}; give the data's Degraded the same factor"
            )
        size = latent_size(height, width, codec, "LowResolution")
        y = unit_range(small)
        return y if y.shape[-2:] == size else F.interpolate(y, size=size, mode="bicubic", antialias=True)

    def _augmented(self, y: Tensor, keys: list[str], draws: Draws | None) -> Tensor:
        """Noise of level s mixed in, and s as one more channel."""
        shape = tuple(y.shape[1:])
        if draws is not None:
            s = self.max_noise * draws.uniform("augmentation", (1, 1, 1))
            noise = draws.normal("augmentation noise", shape)
        else:
            s = torch.full((len(y), 1, 1, 1), self.level, device=y.device)
            noise = seeded_noise([stable_hash(key) for key in keys], "augmentation", shape)
        s, noise = s.to(y), noise.to(y)
        plane = s.expand(-1, 1, *y.shape[-2:])
        return torch.cat([(1 - s**2).sqrt() * y + s * noise, plane], dim=1)

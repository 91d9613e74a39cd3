"""The known part of an image, for inpainting (LDM, arXiv:2112.10752, section 4.5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.conditioning.dropping import check_drop, dropped_samples
from latentdiff.conditioning.reading import codec_of, field_of, unit_range
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.types import Batch, Codec, Conditioning


class MaskedImage(nn.Module):
    """``Batch.image`` and ``Batch.mask`` -> (B, 1 + C, h, w): the mask, then the latent of the image with a gray hole.

    The order is that of Stable Diffusion's inpainting model (latent, mask, masked image: 4 + 1 + 4 channels). The hole
    is set to 0 in [-1, 1] before the image is encoded; the latent is the whitened mean of the posterior, without
    gradient. The null condition is a mask of ones: everything is to be made, and nothing is known.

    A latent belongs to the hole where any pixel of its cell does. Stable Diffusion takes the mask's nearest pixel
    instead, one of each cell: strokes between those pixels are lost, and a cell that is partly gray is called known.
    Here a known cell has known pixels only, as blending by latents needs it (RePaint), and no hole is overlooked; what
    is known in the other pixels of a hole's cell is in the masked latent all the same. Stable Diffusion's weights see a
    hole at most one latent wider along its edge than they were trained with.

    Args:
        drop: probability that training sees the null condition instead.

    Raises:
        InputError: a ``drop`` that is no probability; when called, no codec, a batch without images or without masks,
            a mask of another size than the image, or a size that the codec does not reduce evenly.
    """

    parts = ("mask",)

    def __init__(self, *, drop: float = 0.0):
        super().__init__()
        self.drop = check_drop(drop)

    def forward(self, batch: Batch, codec: Codec | None = None, draws: Draws | None = None) -> Conditioning:
        image, hole = _image_and_hole(batch)
        cond = _encoded(image * ~hole, hole, codec_of(codec))
        if draws is None or self.drop == 0:
            return cond
        return cond.where(~self.dropped(draws)["mask"], self.null(batch, codec))

    def null(self, batch: Batch, codec: Codec | None = None) -> Conditioning:
        image, hole = _image_and_hole(batch)
        gray = _encoded(torch.zeros_like(image[:1]), torch.ones_like(hole[:1]), codec_of(codec))
        return gray.expand(len(batch))

    def alone(self, batch: Batch, codec: Codec | None = None) -> dict[str, Conditioning]:
        return {"mask": self(batch, codec)}

    def dropped(self, draws: Draws) -> dict[str, Tensor]:
        return {"mask": dropped_samples(draws, "mask", self.drop)}


def _image_and_hole(batch: Batch) -> tuple[Tensor, Tensor]:
    """Image in [-1, 1] (B, 3, H, W) and hole bool (B, 1, H, W)."""
    mask = field_of(batch, "mask", "add latentdiff.data.masks.RandomMasks to the data's conditions")
    image = field_of(batch, "image", "an image goes with each mask")
    if mask.shape != (len(image), 1, *image.shape[-2:]):
        raise InputError(
            f"MaskedImage: expected masks of shape {(len(image), 1, *image.shape[-2:])}, one for each image, "
            f"got {tuple(mask.shape)}"
        )
    return unit_range(image), mask > 0


@torch.no_grad()
def _encoded(known: Tensor, hole: Tensor, codec: Codec) -> Conditioning:
    mean, std = codec.moments(known)
    latent = codec.draw((mean, std), torch.zeros_like(mean))
    mask = F.max_pool2d(hole.to(latent.dtype), codec.factor)
    return Conditioning(spatial=torch.cat([mask, latent], dim=1))

"""A map of classes, or of edges, that the image is to follow (LDM, arXiv:2112.10752, section 4.3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentdiff.conditioning.dropping import check_drop, dropped_samples
from latentdiff.conditioning.reading import codec_of, field_of, latent_size
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.types import UNLABELLED, Batch, Codec, Conditioning


class SemanticMap(nn.Module):
    """``Batch.segmentation`` -> the share of each class in each latent's cell of pixels, (B, classes, h, w).

    A cell has ``codec.factor`` x ``codec.factor`` pixels. The shares are LDM's: a one-hot map, halved bilinearly as
    often as it takes, is averaged over areas. They are counted per cell, without a one-hot map at the image's size.
    With ``channels`` a learned 1 x 1 convolution follows, as in LDM's semantic model (182 classes, 3 channels). It has
    no bias (LDM's default). Unlabelled pixels are of no class; the null condition is a map without any other, all zeros
    before the convolution and behind it.

    Values are held against ``classes`` where maps are read. One that is too large after all makes its cell not a
    number, which stops training: it must not pass for unlabelled, and looking here would wait for the device.

    Args:
        classes: of the maps, at most 255 (255 itself is ``UNLABELLED``).
        channels: after the convolution; None: no convolution, the shares themselves.
        drop: probability that training sees an unlabelled map instead.

    Raises:
        InputError: numbers out of range; when called, no codec, a batch without maps, or maps of a size that the codec
            does not reduce evenly or that differs from the image's.
    """

    parts = ("map",)

    def __init__(self, *, classes: int, channels: int | None = None, drop: float = 0.1):
        super().__init__()
        if not 1 <= classes <= UNLABELLED:
            raise InputError(f"SemanticMap: expected 1 to {UNLABELLED} classes, got {classes}")
        if channels is not None and channels < 1:
            raise InputError(f"SemanticMap: expected at least 1 channel, or null for one per class, got {channels}")
        self.classes, self.drop = classes, check_drop(drop)
        self.channel_mapper = None if channels is None else nn.Conv2d(classes, channels, 1, bias=False)

    def forward(self, batch: Batch, codec: Codec | None = None, draws: Draws | None = None) -> Conditioning:
        codec = codec_of(codec)
        cond = self._mapped(class_shares(_map_of(batch, codec), self.classes, codec.factor))
        if draws is None or self.drop == 0:
            return cond
        return cond.where(~self.dropped(draws)["map"], self.null(batch, codec))

    def null(self, batch: Batch, codec: Codec | None = None) -> Conditioning:
        codec = codec_of(codec)
        labels = _map_of(batch, codec)
        height, width = labels.shape[-2:]
        size = latent_size(height, width, codec, "SemanticMap")
        return self._mapped(torch.zeros(len(batch), self.classes, *size, device=labels.device))

    def alone(self, batch: Batch, codec: Codec | None = None) -> dict[str, Conditioning]:
        return {"map": self(batch, codec)}

    def dropped(self, draws: Draws) -> dict[str, Tensor]:
        return {"map": dropped_samples(draws, "map", self.drop)}

    def _mapped(self, shares: Tensor) -> Conditioning:
        if self.channel_mapper is None:
            return Conditioning(spatial=shares)
        return Conditioning(spatial=self.channel_mapper(shares.to(self.channel_mapper.weight.dtype)))


def class_shares(labels: Tensor, classes: int, factor: int) -> Tensor:
    """Labels uint8 (B, H, W) -> share of each class among a cell's pixels, float32 (B, classes, H/factor, W/factor).

    Counts are whole numbers, so that the order in which a device adds them does not matter. Cells with a value that is
    neither a class nor ``UNLABELLED`` are NaN.
    """
    b, height, width = labels.shape
    h, w = height // factor, width // factor
    cells = labels.reshape(b, h, factor, w, factor).transpose(2, 3).reshape(b, h, w, factor**2).long()
    unlabelled, unknown = classes, classes + 1
    bins = torch.where(cells < classes, cells, torch.where(cells == UNLABELLED, unlabelled, unknown))
    counts = torch.zeros(b, h, w, classes + 2, device=labels.device)
    counts.scatter_add_(-1, bins, torch.ones_like(bins, dtype=counts.dtype))
    shares = counts[..., :classes] / factor**2
    return shares.masked_fill(counts[..., unknown:] > 0, torch.nan).permute(0, 3, 1, 2)


def _map_of(batch: Batch, codec: Codec) -> Tensor:
    """The batch's maps, (B, H, W); an InputError unless they have the image's size, which the codec divides."""
    labels = field_of(batch, "segmentation", "use data with .seg.png files, or edge maps (EdgeMaps), which need none")
    height, width = labels.shape[-2:]
    latent_size(height, width, codec, "SemanticMap")
    if batch.image is not None and batch.image.shape[-2:] != labels.shape[-2:]:
        raise InputError(
            f"SemanticMap: expected maps of the image's size {tuple(batch.image.shape[-2:])}, "
            f"got {tuple(labels.shape[-2:])}"
        )
    return labels

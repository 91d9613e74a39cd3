"""Learned perceptual distance of reconstructions to their originals."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from latentdiff.metrics.features.base import full_precision
from latentdiff.metrics.paired import Paired, check_pair
from latentdiff.models.perceptual import LPIPS, VGG16_URL

PUBLISHED_PREFIX = VGG16_URL.rpartition("-")[2].removesuffix(".pth")
"""Torchvision names a weight file by the first digits of its SHA-256."""


class Lpips(Paired):
    """Mean over images of LPIPS (arXiv:1801.03924), lower is nearer; in float32 at the images' own size.

    The result is named after the weights: ``lpips_vgg16`` with torchvision's VGG16, ``lpips_vgg16-sha256-...`` with
    any other file, since distances of other networks are not comparable; plain ``lpips`` with a network that stands
    already.

    Args:
        weights: path of torchvision's ``vgg16-397923af.pth``, None: torch's cache, filled by a download of 528 MB.
        network: in place of ``weights``, the one that the loss of this training has.

    Raises:
        InputError: the weights are missing, unreadable or cannot be downloaded, see ``models.perceptual``.
    """

    def __init__(self, *, weights: str | None = None, network: LPIPS | None = None):
        self.network = LPIPS(weights=weights) if network is None else network
        self.name = f"lpips_{_source(weights)}" if network is None else "lpips"

    def compare(self, images: Tensor, originals: Tensor) -> Tensor:
        check_pair(images, originals)
        with full_precision(images.device), torch.no_grad():
            a, b = (each.float() / 127.5 - 1.0 for each in (images, originals))
            return self.network.to(images.device)(a, b)

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {"network": self.name}


def _source(weights: str | None) -> str:
    if weights is None:  # a download is checked against the published digest
        return "vgg16"
    sha256 = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    return "vgg16" if sha256.startswith(PUBLISHED_PREFIX) else f"vgg16-sha256-{sha256[:8]}"

"""The floor that an autoencoder has to beat: the best linear code of image patches with as many numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from latentdiff.config.errors import InputError
from latentdiff.metrics.paired import Paired
from latentdiff.metrics.reconstruction import PSNR_CEILING, psnr


class PatchPca(Paired):
    """PSNR of a principal component analysis that keeps ``components`` numbers of each factor x factor x 3 patch.

    That is a latent of the same size as an autoencoder's with as many channels and the same factor, made without
    training: closed form, in float64, from the patches' mean and covariance (Eckart & Young 1936: no other linear code
    of that size has a smaller squared error). Reconstructions are rounded to 8 bits, the codes are not.

    Args:
        images: on which it is fitted, uint8 (B, 3, H, W) in batches, H and W multiples of ``factor``.
        factor: side of a patch.
        components: numbers kept of each patch.
    """

    name = "patch_pca_psnr"

    def __init__(self, *, images: Iterable[Tensor], factor: int, components: int):
        if components < 1 or factor < 1:
            raise InputError(f"a patch PCA needs a factor and components of at least 1; got {factor}, {components}")
        self.factor, self.count = factor, 0
        total, products, rows = None, None, 0
        for batch in images:
            x = self._patches(batch)
            total = x.sum(0) + (0.0 if total is None else total)
            products = x.T @ x + (0.0 if products is None else products)
            rows, self.count = rows + len(x), self.count + len(batch)
        if total is None or products is None:
            raise InputError("a patch PCA needs at least one image to be fitted on; there is none")
        self.mean = total / rows
        covariance = products / rows - torch.outer(self.mean, self.mean)
        self.basis = torch.linalg.eigh(covariance).eigenvectors[:, -components:]
        """float64 (3 factor^2, components), orthonormal columns."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> uint8 of the same shape."""
        basis, mean = self.basis.to(images.device), self.mean.to(images.device)
        x = (self._patches(images) - mean) @ basis @ basis.T + mean
        batch, _, height, width = images.shape
        x = x.view(batch, height // self.factor, width // self.factor, -1).permute(0, 3, 1, 2)
        return F.pixel_shuffle(x * 255.0, self.factor).round().clamp(0, 255).to(torch.uint8)

    def compare(self, images: Tensor, originals: Tensor) -> Tensor:
        """PSNR of the PCA's own reconstructions; ``images`` are another's and not looked at."""
        return psnr(self.reconstruct(originals), originals).clamp(max=PSNR_CEILING)

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {"factor": self.factor, "components": self.basis.shape[1], "fitted_on_images": self.count}

    def _patches(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float64 (B H W / factor^2, 3 factor^2), in [0, 1]."""
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise InputError(
                f"a patch PCA of factor {self.factor} needs sides that are multiples, got {height}x{width}"
            )
        x = F.pixel_unshuffle(images.double() / 255.0, self.factor)
        return x.permute(0, 2, 3, 1).flatten(0, 2)

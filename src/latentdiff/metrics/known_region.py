"""Does inpainting keep what it was given? The known pixels, against the original's."""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.metrics.gather import Indexed
from latentdiff.metrics.paired import check_pair
from latentdiff.metrics.reconstruction import PSNR_CEILING
from latentdiff.types import Batch


class KnownRegion:
    """PSNR over the pixels outside the hole, of the images as the decoder gives them: nothing is pasted.

    A latent model cannot keep pixels better than its first stage does, so the same of the original's reconstruction
    stands beside it, with the difference of the two in dB. Means over the images that have a known pixel; an image
    that keeps them all exactly counts ``PSNR_CEILING``.
    """

    def __init__(self) -> None:
        self._generated, self._reconstructed = Indexed(), Indexed()
        self._compares = False

    def check(self, batch: Batch) -> None:
        """Raises InputError where the samples lack what is read of them."""
        if batch.image is None or batch.mask is None:
            raise InputError("the known region needs originals and the masks of holes, the batch lacks one of them")

    def update(self, images: Tensor, batch: Batch) -> None:
        """Images, uint8 (B, 3, H, W), that were to continue ``batch.image`` where ``batch.mask`` is 1."""
        self.check(batch)
        self._generated.add(_of_batch(images, batch), batch)

    def update_reconstructions(self, images: Tensor, batch: Batch) -> None:
        """What the first stage alone makes of ``batch.image``, uint8 (B, 3, H, W)."""
        self._compares = True
        self._reconstructed.add(_of_batch(images, batch), batch)

    def compute(self) -> dict[str, float]:
        """{"psnr": dB}, with reconstructions also "reconstructions" and "difference" (below 0: worse). Collective."""
        found = {"psnr": _mean(self._generated)}
        if self._compares:
            found["reconstructions"] = _mean(self._reconstructed)
            found["difference"] = found["psnr"] - found["reconstructions"]
        return found

    def anew(self) -> KnownRegion:
        """A fresh one."""
        return KnownRegion()


def known_psnr(images: Tensor, originals: Tensor, mask: Tensor) -> Tensor:
    """PSNR per image in dB over the pixels whose ``mask`` is 0, (B,), float32; NaN where there is none.

    Images uint8 (B, 3, H, W), mask (B, 1, H, W).
    """
    check_pair(images, originals)
    known = (mask == 0).float()
    error = ((images.float() - originals.float()) / 255.0).square().mean(dim=1, keepdim=True)
    return -10.0 * ((error * known).sum(dim=(1, 2, 3)) / known.sum(dim=(1, 2, 3))).log10()


def _of_batch(images: Tensor, batch: Batch) -> Tensor:
    values = known_psnr(images, batch.image.to(images.device), batch.mask.to(images.device))
    return values.clamp(max=PSNR_CEILING)


def _mean(values: Indexed) -> float:
    """NaN where no image has a known pixel."""
    return float(torch.stack(values.gathered()).double().nanmean())

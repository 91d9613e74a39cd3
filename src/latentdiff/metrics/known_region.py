"""Does inpainting keep what it was given? The known pixels, against the original's."""

from __future__ import annotations

from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.metrics.paired import check_pair
from latentdiff.metrics.reconstruction import PSNR_CEILING
from latentdiff.metrics.rows import column_if_any
from latentdiff.types import Batch, Column, Rows


class KnownRegion:
    """PSNR over the pixels outside the hole, of the images as the decoder gives them: nothing is pasted.

    A latent model cannot keep pixels better than its first stage does, so the same of the original's reconstruction
    stands beside it, with the difference of the two in dB. Means over the images that have a known pixel; an image
    that keeps them all exactly counts ``PSNR_CEILING``.
    """

    def check(self, batch: Batch) -> None:
        """Raises InputError where the samples lack what is read of them."""
        if batch.image is None or batch.mask is None:
            raise InputError("the known region needs originals and the masks of holes, the batch lacks one of them")

    def measure(self, images: Tensor, batch: Batch) -> dict[str, Column]:
        """Images, uint8 (B, 3, H, W), that were to continue ``batch.image`` where ``batch.mask`` is 1."""
        self.check(batch)
        assert batch.image is not None
        assert batch.mask is not None
        values = known_psnr(images, batch.image.to(images.device), batch.mask.to(images.device))
        return {"psnr": values.clamp(max=PSNR_CEILING)}

    def measure_reconstructions(self, images: Tensor, batch: Batch) -> dict[str, Column]:
        """The same of what the first stage alone makes of ``batch.image``, uint8 (B, 3, H, W)."""
        return self.measure(images, batch)

    def result(self, rows: Rows) -> dict[str, float]:
        """{"psnr": dB}, with reconstructions also "reconstructions" and "difference" (below 0: worse)."""
        found, rebuilt = {"psnr": _mean(rows.column("psnr"))}, column_if_any(rows, "rebuilt.psnr")
        if rebuilt is not None:
            found["reconstructions"] = _mean(rebuilt)
            found["difference"] = found["psnr"] - found["reconstructions"]
        return found


def known_psnr(images: Tensor, originals: Tensor, mask: Tensor) -> Tensor:
    """PSNR per image in dB over the pixels whose ``mask`` is 0, (B,), float32; NaN where there is none.

    Images uint8 (B, 3, H, W), mask (B, 1, H, W).
    """
    check_pair(images, originals)
    known = (mask == 0).float()
    error = ((images.float() - originals.float()) / 255.0).square().mean(dim=1, keepdim=True)
    return -10.0 * ((error * known).sum(dim=(1, 2, 3)) / known.sum(dim=(1, 2, 3))).log10()


def _mean(values: Tensor) -> float:
    """NaN where no image has a known pixel."""
    return float(values.double().nanmean())

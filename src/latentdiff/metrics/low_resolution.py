"""Is an enlarged image still the small one that it was made from?"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate

from latentdiff.config.errors import InputError
from latentdiff.metrics.reconstruction import PSNR_CEILING, psnr
from latentdiff.metrics.rows import column_if_any
from latentdiff.types import Batch, Column, Rows


class LowResolutionConsistency:
    """``low_res_psnr``: of the images, reduced again, to the small ones they were made from, in dB; ``psnr``: of the
    images to the originals, where the batch has them.

    Reduced as ``resized`` does. What a model invents between the given pixels
    costs ``psnr``, where a blurred image does well, but nothing of ``low_res_psnr`` (as the consistency of SR3,
    arXiv:2104.07636, section 4, there as a mean squared error). Means over images; an exact one
    counts ``PSNR_CEILING``. With noise, blur or JPEG in the small images no model reaches that.
    """

    def check(self, batch: Batch) -> None:
        """Raises InputError where the samples lack what is read of them."""
        if batch.low_res is None:
            raise InputError("low-resolution consistency needs the small images, the batch has none")

    def measure(self, images: Tensor, batch: Batch) -> dict[str, Column]:
        """Images, uint8 (B, 3, H, W), made from ``batch.low_res``."""
        self.check(batch)
        assert batch.low_res is not None
        small = batch.low_res.to(images.device)
        found: dict[str, Column] = {
            "low_res_psnr": psnr(resized(images, (small.shape[-2], small.shape[-1])), small).clamp(max=PSNR_CEILING)
        }
        if batch.image is not None:
            found["psnr"] = psnr(images, batch.image.to(images.device)).clamp(max=PSNR_CEILING)
        return found

    def result(self, rows: Rows) -> dict[str, float]:
        """{"low_res_psnr": dB, "psnr": dB}."""
        columns = {name: column_if_any(rows, name) for name in ("low_res_psnr", "psnr")}
        return {name: float(values.double().mean()) for name, values in columns.items() if values is not None}


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (B, 3, H, W) -> uint8 (B, 3, *size): bicubic, antialiased where it reduces.

    On the CPU and in its 8-bit arithmetic, as the data pipeline reduces images (``data.degradations``), bit for bit.
    """
    size = (int(size[0]), int(size[1]))
    found = interpolate(images.cpu(), size=size, mode="bicubic", antialias=True, align_corners=False)
    return found.to(images.device)

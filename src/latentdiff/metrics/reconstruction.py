"""How faithfully stage one gives an image back, pixel by pixel and window by window."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from latentdiff.config.errors import InputError
from latentdiff.metrics.paired import Paired, check_pair

PSNR_CEILING = 100.0
"""dB that an image counts in a mean where it came back exactly; one level off in one value of 64x64x3 is 89 dB."""

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image in dB, (B,), float32; infinite for equal images.

    Both (B, C, H, W), each uint8 or float in [-1, 1]; compared over [0, 1] with peak 1: -10 log10(mean squared error).
    """
    check_pair(image, reference)
    error = (_unit_range(image) - _unit_range(reference)).square().mean(dim=(1, 2, 3))
    return -10.0 * error.log10()


def ssim(image: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity per image, (B,), float32, 1 for equal images (Wang et al. 2004, equation 13).

    Both uint8 (B, C, H, W), compared over [0, 255]; Gaussian window of 11 pixels with sigma 1.5, mirrored borders,
    K1 = 0.01 and K2 = 0.03, mean over pixels and channels: the choices of torchmetrics, and its values.

    Raises:
        InputError: a side is shorter than the half window can be mirrored over, 6 pixels.
    """
    check_pair(image, reference)
    if min(image.shape[-2:]) <= WINDOW // 2:
        raise InputError(f"SSIM needs images of at least {WINDOW // 2 + 1} pixels; got {tuple(image.shape[-2:])}")
    rows, columns = (_blur(n).to(image.device) for n in image.shape[-2:])
    # Shifted to the middle of the range: the variances, differences of large numbers, lose fewer digits.
    x, y = (each.float() - 127.5 for each in (image, reference))
    mean_x, mean_y, xx, yy, xy = (rows @ each @ columns.T for each in (x, y, x * x, y * y, x * y))
    variances = (xx - mean_x.square()) + (yy - mean_y.square())
    covariance = xy - mean_x * mean_y
    mean_x, mean_y = mean_x + 127.5, mean_y + 127.5
    c1, c2 = (K1 * 255.0) ** 2, (K2 * 255.0) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x.square() + mean_y.square() + c1) * (variances + c2)
    return (above / below).mean(dim=(1, 2, 3))


class Psnr(Paired):
    """Mean over images of the PSNR of 8-bit images, ``{"psnr": dB}``; an exact image counts ``PSNR_CEILING``."""

    name = "psnr"

    def compare(self, images: Tensor, originals: Tensor) -> Tensor:
        return psnr(images, originals).clamp(max=PSNR_CEILING)


class Ssim(Paired):
    """Mean over images of the structural similarity of 8-bit images, ``{"ssim": value}``."""

    name = "ssim"

    def compare(self, images: Tensor, originals: Tensor) -> Tensor:
        return ssim(images, originals)


def _blur(size: int) -> Tensor:
    """The Gaussian window with mirrored borders as a matrix (size, size): a product with it is far quicker than a
    convolution of one channel."""
    x = torch.arange(WINDOW) - (WINDOW - 1) / 2
    window = torch.exp(-x.square() / (2 * SIGMA**2))
    basis = F.pad(torch.eye(size)[:, None], (WINDOW // 2, WINDOW // 2), mode="reflect")
    return F.conv1d(basis, (window / window.sum())[None, None])[:, 0].T


def _unit_range(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image.float() / 255.0
    if not image.is_floating_point():
        raise ValueError(f"expected uint8 or float images; got {image.dtype}")
    return (image.float().clamp(-1.0, 1.0) + 1.0) / 2.0

"""Image features that Fréchet distances are measured in: uint8 images (B, 3, H, W) -> float32 (B, dim)."""

from __future__ import annotations

import hashlib
import pickle
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentdiff.config.errors import InputError

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_SOURCE = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_NAME = "inception-2015-12-05"


class Features(Protocol):
    """``name`` says exactly which features these are: distances of different names are never comparable."""

    name: str
    dim: int

    def __call__(self, images: Tensor) -> Tensor: ...
    def to(self, device: torch.device) -> Features: ...


class RandomConvFeatures(nn.Module):
    """Mean and standard deviation of the activations of a fixed random convolutional network at several scales.

    Needs no download and takes milliseconds, for tests, small runs and watching a training. Random features see colour,
    texture and coarse shape; a distance between them is NOT a FID. The weights come from a CPU generator and are the
    same on every machine.

    Args:
        seed: of the weights; another seed is another metric and is named so.
        dim: number of features, a multiple of ``2 * scales``.
        scales: each halves the resolution; images need at least ``2 ** scales`` pixels a side.
    """

    def __init__(self, *, seed: int = 0, dim: int = 256, scales: int = 4):
        super().__init__()
        if scales < 1 or dim < 1 or dim % (2 * scales):
            raise InputError(f"dim must be a positive multiple of 2 * scales = {2 * scales}; got {dim}")
        self.dim, self.scales = dim, scales
        standard = (seed, dim, scales) == (0, 256, 4)
        self.name = "randconv-v1" if standard else f"randconv-v1-seed{seed}-dim{dim}-scales{scales}"
        generator = torch.Generator().manual_seed(seed)
        width, channels = dim // (2 * scales), 3
        for level in range(scales):
            fan_in = channels * 9
            weight = torch.randn(width, channels, 3, 3, generator=generator) * (2.0 / fan_in) ** 0.5
            self.register_buffer(f"weight{level}", weight, persistent=False)
            self.register_buffer(f"bias{level}", 0.1 * torch.randn(width, generator=generator), persistent=False)
            channels = width

    def forward(self, images: Tensor) -> Tensor:
        _check_images(images)
        if min(images.shape[-2:]) < 2**self.scales:
            raise InputError(f"{self.name} needs images of at least {2**self.scales} pixels; got {tuple(images.shape)}")
        with full_precision(images.device), torch.no_grad():
            x, pooled = images.float() / 127.5 - 1.0, []
            for level in range(self.scales):
                x = F.avg_pool2d(x, 2) if level else x
                weight, bias = self.get_buffer(f"weight{level}"), self.get_buffer(f"bias{level}")
                x = F.leaky_relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight, bias), 0.2)
                pooled += [x.mean(dim=(2, 3)), x.std(dim=(2, 3), correction=0)]
            return torch.cat(pooled, dim=1)


class InceptionV3(nn.Module):
    """The 2048 pool features of the 2015 TensorFlow Inception that defines the FID (Heusel et al., arXiv:1706.08500).

    The network and its TensorFlow-1 bilinear resize (no antialiasing) to 299 pixels are torch-fidelity's. Any other
    weights than the published ones are named by their hash, so that their distance is never taken for a FID.

    Args:
        weights: path of the weight file, or None: torch's cache, filled by a download of 96 MB.

    Raises:
        InputError: torch-fidelity is not installed, or the weights are missing, damaged or cannot be downloaded.
    """

    dim = 2048

    def __init__(self, *, weights: str | None = None):
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise InputError("InceptionV3 features need torch-fidelity: pip install 'latentdiff[eval]'") from error
        path = _inception_file(weights)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.name = INCEPTION_NAME if sha256 == INCEPTION_SHA256 else f"inception-sha256-{sha256[:8]}"
        try:
            torch.load(path, weights_only=True)  # torch-fidelity unpickles without this guard
            self.network = FeatureExtractorInceptionV3(self.name, ["2048"], feature_extractor_weights_path=str(path))
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise InputError(
                f"'{path}' does not hold the weights of the 2015 Inception ({error}); get {INCEPTION_SOURCE}"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        _check_images(images)
        with full_precision(images.device), torch.no_grad():
            return self.network(images)[0]


def _inception_file(weights: str | None) -> Path:
    how = f"get {INCEPTION_SOURCE} and give its path as the option 'weights' of metrics.features.InceptionV3"
    if weights is not None:
        if not Path(weights).is_file():
            raise InputError(f"Inception weights '{weights}' not found; {how}")
        return Path(weights)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not cached.is_file():
        cached.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(INCEPTION_SOURCE, str(cached), hash_prefix="6726825d", progress=False)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"Inception weights are not in '{cached}' and did not download ({error}); {how}"
            ) from error
    return cached


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 images (B, 3, H, W); got {images.dtype} {tuple(images.shape)}")


@contextmanager
def full_precision(device: torch.device):
    """float32 convolutions without autocast and TF32, by deterministic algorithms that no benchmark chooses."""
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.autocast(device.type, enabled=False), cudnn:
        yield

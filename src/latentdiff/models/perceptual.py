"""Perceptual distances between images: LPIPS on VGG16, and a gradient pyramid that needs no weights."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.config.errors import InputError
from latentdiff.nn.freeze import freeze
from latentdiff.nn.precision import at_least_float32

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
_STAGES = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
"""Widths of VGG16's convolutions, one tuple per resolution (arXiv:1409.1556, configuration D)."""


class LPIPS(nn.Module):
    """Learned perceptual distance (arXiv:1801.03924, equation 1), VGG16 with linear heads, version 0.1.

    ``weights``: path of torchvision's ``vgg16-397923af.pth``; None downloads it once into torch's hub cache. The heads
    are those that torchmetrics ships. Frozen: gradients reach the images alone, and no parent's checkpoint contains
    it. Raises InputError where the weights are missing, unreadable or cannot be downloaded.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, *, weights: str | None = None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.ModuleList(map(_conv, widths, widths[1:])) for widths in _STAGES)
        self.heads = nn.ParameterList(torch.empty(1, widths[-1], 1, 1) for widths in _STAGES)
        # ImageNet's mean and standard deviation on the [-1, 1] scale
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1))
        self._load_backbone(weights)
        self._load_heads()
        freeze(self)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a and b (B, 3, H, W) in [-1, 1] -> distances, float32 (B,)."""
        distance = torch.zeros(a.shape[0], device=a.device)
        for fa, fb, head in zip(self._features(a), self._features(b), self.heads):
            difference = (_unit(fa) - _unit(fb)).square()
            distance = distance + (difference * head).sum(dim=1).mean(dim=(1, 2))
        return distance

    def _features(self, image: Tensor) -> list[Tensor]:
        """The last activation of each of the five resolutions."""
        x = (image - self.shift) / self.scale
        taps = []
        for i, stage in enumerate(self.stages):
            x = F.max_pool2d(x, 2) if i > 0 else x
            for conv in stage.children():
                x = F.relu(conv(x))
            taps.append(x)
        return taps

    def _load_backbone(self, weights: str | None) -> None:
        state = _download() if weights is None else _read(Path(weights))
        # torchvision numbers the layers of ``features``, pooling and activations included
        number = 0
        try:
            for stage in self.stages:
                for conv in stage.children():
                    layer = {k: state[f"features.{number}.{k}"] for k in ("weight", "bias")}
                    conv.load_state_dict(layer)
                    number += 2
                number += 1
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"LPIPS: the weights {weights or VGG16_URL} are not those of torchvision's VGG16 ({error}); {_remedy()}"
            ) from error

    def _load_heads(self) -> None:
        spec = importlib.util.find_spec("torchmetrics")
        assert spec is not None
        assert spec.origin is not None
        heads = Path(spec.origin).parent / "functional/image/lpips_models/vgg.pth"
        state = torch.load(heads, "cpu", weights_only=True)
        with torch.no_grad():
            for i, head in enumerate(self.heads):
                head.copy_(state[f"lin{i}.model.1.weight"])


class GradientPyramid(nn.Module):
    """L1 distance of image gradients over an average-pooling pyramid; needs no pretrained weights.

    At each of ``levels`` resolutions, from full size on and each half the one before, the absolute differences
    between the horizontal and between the vertical finite differences of both images are averaged over the sample;
    both are summed, and the result is the mean over the levels. It sees edges that are blurred or misplaced and is
    blind to a constant offset of colour: use it beside a pixel loss.
    """

    def __init__(self, *, levels: int = 3) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a and b (B, C, H, W), height and width at least 2^levels -> distances, float32 (B,)."""
        if min(a.shape[-2:]) < 2**self.levels:
            raise InputError(
                f"GradientPyramid: {self.levels} levels need images of at least {2**self.levels} pixels, "
                f"got {tuple(a.shape[-2:])}; use fewer levels"
            )
        error = at_least_float32(a) - at_least_float32(
            b
        )  # differences and pooling are linear: one pyramid serves both images
        distance = error.new_zeros(a.shape[0])
        for level in range(self.levels):
            error = F.avg_pool2d(error, 2) if level > 0 else error
            for axis in (-1, -2):
                distance = distance + error.diff(dim=axis).abs().mean(dim=(1, 2, 3))
        return distance / self.levels


def _conv(before: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(before, width, 3, padding=1)


def _unit(features: Tensor) -> Tensor:
    """Unit length over the channels, in float32 or wider."""
    features = at_least_float32(features)
    return features / torch.sqrt(1e-8 + features.square().sum(dim=1, keepdim=True))


def _download() -> dict[str, Tensor]:
    try:
        return torch.hub.load_state_dict_from_url(VGG16_URL, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"LPIPS: the VGG16 weights cannot be downloaded ({error}); {_remedy()}") from error


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"LPIPS: there is no file {path}; {_remedy()}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"LPIPS: {path} cannot be read ({error}); {_remedy()}") from error


def _remedy() -> str:
    return (
        f"get vgg16-397923af.pth from {VGG16_URL} and give its path as the option 'weights' of LPIPS, "
        "or choose GradientPyramid, which needs no weights"
    )

"""Images, and an Inception weight file of random numbers in the layout of the published one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentdiff.types import Batch


@pytest.fixture(scope="session")
def pictures():
    """``pictures(n, size=32, seed=0)``: uint8 (n, 3, size, size), coarse blocks of colour under noise."""

    def draw(n: int, size: int = 32, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randint(0, 200, (n, 3, 4, 4), generator=generator).float()
        noise = torch.randint(0, 56, (n, 3, size, size), generator=generator)
        return (torch.nn.functional.interpolate(coarse, size=(size, size)) + noise).to(torch.uint8)

    return draw


@pytest.fixture(scope="session")
def batch_of():
    """``batch_of(images, captions=None)``: what they were made for."""

    def make(images: Tensor, captions: list[str] | None = None) -> Batch:
        return Batch(keys=[f"sample{i}" for i in range(len(images))], caption=captions)

    return make


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory) -> Path:
    """Activations keep their size from layer to layer, so that features and logits differ from image to image."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *a, **k: None)
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = module.FeatureExtractorInceptionV3("blank", ["2048"])
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
        elif name.endswith("bn.bias"):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    torch.save(network.state_dict(), path)
    return path

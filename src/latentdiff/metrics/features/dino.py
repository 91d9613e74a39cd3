"""DINOv2 as a feature network."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentdiff.config.errors import InputError
from latentdiff.metrics.features.base import POOL, check_images, full_precision
from latentdiff.metrics.features.pillow import imagenet_input
from latentdiff.models.hub import load_pretrained, transformers_module
from latentdiff.models.weights import tensors_sha256
from latentdiff.nn.freeze import freeze
from latentdiff.types import Batch

SIZE = 224
PUBLISHER = "facebook"


class DinoFeatures(nn.Module):
    """``pool``: the class token of DINOv2 (arXiv:2304.07193) after the last layer norm, for FD-DINOv2 (Stein et al.,
    arXiv:2306.04675), which takes ViT-L/14.

    Images are resized to 224 pixels by Pillow, bicubic, sides scaled independently, and normalised by ImageNet's mean
    and standard deviation. The position table is resized to their 16 x 16 patches as DINOv2's own code does it.

    Args:
        model: a folder of transformers, or a model id of the Hugging Face hub. Weights must be safetensors.

    Raises:
        InputError: transformers is not installed, or a model that cannot be had, is no DINOv2 or lacks weights.
    """

    published = False
    network: Any
    """A model of transformers."""

    def __init__(self, *, model: str = "facebook/dinov2-large"):
        super().__init__()
        self.network = freeze(_load(model))
        self.sha256 = tensors_sha256(self.network)
        config = self.network.config
        table = self.network.embeddings.position_embeddings
        table.data = resized_positions(table.data, SIZE // config.patch_size)
        self.layers = {POOL: config.hidden_size}
        owner, _, name = model.partition("/")
        known = owner == PUBLISHER and not Path(model).expanduser().is_dir()
        self.name = name if known else f"dinov2-sha256-{self.sha256[:8]}"

    def forward(self, images: Tensor, batch: Batch, layers: Collection[str] = (POOL,)) -> dict[str, Tensor]:
        check_images(images)
        with full_precision(images.device), torch.no_grad():
            return {POOL: self.network(pixel_values=imagenet_input(images, SIZE)).last_hidden_state[:, 0]}

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {
            "tensors_sha256": self.sha256,
            "resize": f"{SIZE} x {SIZE}, bicubic with antialiasing by Pillow, ImageNet's mean and std",
            "library": f"transformers {version('transformers')}",
        }


def resized_positions(table: Tensor, side: int) -> Tensor:
    """(1, 1 + n^2, D), the class token's first -> (1, 1 + side^2, D).

    DINOv2 interpolates with the scale (side + 0.1) / n, which moves the sampling points by up to 0.1 patches, and was
    trained on a table that this leaves as it is; transformers interpolates with side / n.
    """
    first, patches = table[:, :1], table[:, 1:]
    n = round(patches.shape[1] ** 0.5)
    if n == side:
        return table
    grid = patches.reshape(1, n, n, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(side + 0.1) / n, mode="bicubic", align_corners=False)
    return torch.cat([first, grid.permute(0, 2, 3, 1).reshape(1, side * side, -1)], dim=1)


def _load(model: str) -> nn.Module:
    transformers = transformers_module()
    config = load_pretrained(partial(transformers.AutoConfig.from_pretrained, trust_remote_code=False), model)
    if config.model_type != "dinov2":
        raise InputError(
            f"features.model: '{model}' is a {config.model_type}; expected a DINOv2, such as facebook/dinov2-large"
        )
    load = partial(transformers.Dinov2Model.from_pretrained, use_safetensors=True, output_loading_info=True)
    network, found = load_pretrained(load, model)
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"features.model: the weights of '{model}' lack {len(missing)} tensors of a DINOv2, first {missing[0]}; "
            "transformers would make them up at random"
        )
    return network.float()

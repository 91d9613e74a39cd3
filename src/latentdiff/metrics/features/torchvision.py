"""Image classifiers of torchvision as feature networks."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff import durable
from latentdiff.config.errors import InputError
from latentdiff.config.faults import did_you_mean
from latentdiff.metrics.features.base import LOGITS, POOL, check_images, full_precision
from latentdiff.metrics.features.pillow import imagenet_input
from latentdiff.models.weights import load_weights, read_weights
from latentdiff.nn.freeze import freeze
from latentdiff.types import Batch

SIZE = 224


class TorchvisionFeatures(nn.Module):
    """``pool``: what the last fully connected layer reads. ``logits``: what it gives.

    The pool of ``vgg16`` is the second fully connected layer after its ReLU (4096), the space of the original precision
    and recall (Kynkäänniemi et al., arXiv:1904.06991). Images are resized to 224 pixels by Pillow, bicubic, sides
    scaled independently, and normalised by ImageNet's mean and standard deviation, whatever the model's own training
    did.

    Args:
        model: a classifier's name in ``torchvision.models``, such as ``resnet50``.
        weights: path of its ``.pth`` file.

    Raises:
        InputError: no such classifier, one that ends in another layer, or weights that are missing, damaged or another
            model's.
    """

    published = False

    def __init__(self, *, model: str, weights: str):
        super().__init__()
        from torchvision import models

        known = models.list_models(module=models)
        if model not in known:
            raise InputError(f"features.model: torchvision has no classifier '{model}'{did_you_mean(model, known)}")
        about = {"what": f"torchvision's {model}", "remedy": _remedy(models, model)}
        network = models.get_model(model, weights=None)
        self._last = last_layer(network, model)
        load_weights(network, read_weights(weights, **about), weights, **about)
        self.network, self.sha256 = freeze(network), durable.sha256(Path(weights))
        self.layers = {POOL: self._last.in_features, LOGITS: self._last.out_features}
        self.name = f"{model}-sha256-{self.sha256[:8]}"

    def forward(self, images: Tensor, batch: Batch, layers: Collection[str] = (POOL,)) -> dict[str, Tensor]:
        check_images(images)
        found: dict[str, Tensor] = {}

        def keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            found[POOL], found[LOGITS] = inputs[0], output

        hook = self._last.register_forward_hook(keep)
        try:
            with full_precision(images.device), torch.no_grad():
                self.network(imagenet_input(images, SIZE))
        finally:
            hook.remove()
        return {layer: found[layer] for layer in layers}

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {
            "weights_sha256": self.sha256,
            "resize": f"{SIZE} x {SIZE}, bicubic with antialiasing by Pillow, ImageNet's mean and std",
            "library": f"torchvision {version('torchvision')}",
        }


def last_layer(network: nn.Module, model: str) -> nn.Linear:
    """Raises InputError where that is none, or where the network expects other images (torchvision's Inceptions)."""
    last = [part for part in network.modules() if not list(part.children())][-1]
    if isinstance(last, nn.Linear) and not hasattr(network, "transform_input"):
        return last
    raise InputError(
        f"features.model: {model} does not end in a fully connected layer or expects images normalised in another way; "
        "choose another classifier, such as resnet50 or vgg16 (FID's Inception is InceptionV3)"
    )


def _remedy(models: Any, model: str) -> str:
    return (
        f"get {models.get_model_weights(model).DEFAULT.url} (or an older one of that model) and give its path as the "
        "option 'weights' of TorchvisionFeatures"
    )

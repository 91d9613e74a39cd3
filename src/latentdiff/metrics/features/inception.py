"""The Inception network of the published FID."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from latentdiff import durable
from latentdiff.config.errors import InputError
from latentdiff.metrics.features.base import LOGITS, POOL, SPATIAL, check_images, full_precision
from latentdiff.models.weights import in_short, read_weights
from latentdiff.types import Batch

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_SOURCE = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_NAME = "inception-2015-12-05"
SPATIAL_CHANNELS = 7
_WHAT = "the 2015 Inception"
_REMEDY = f"get {INCEPTION_SOURCE} and give its path as the option 'weights' of InceptionV3"


class InceptionV3(nn.Module):
    """The 2015 TensorFlow Inception that defines the FID (Heusel et al., arXiv:1706.08500), one pass for all layers.

    - ``pool``: 2048 numbers, the graph's ``pool_3``.
    - ``logits``: 1008, without the bias, as ADM's evaluator (arXiv:2105.05233) and torch-fidelity compute the Inception
      score: the pool features times the last matrix.
    - ``spatial``: for sFID (Nash et al., arXiv:2103.03841), the first 7 channels of the graph's ``mixed_6/conv``, 17 x
      17, in the order (row, column, channel) of ADM's reference statistics. The graph counts its blocks ``mixed``,
      ``mixed_1``, ... and torch Mixed_5b, 5c, 5d, 6a, ..., so that ``mixed_6`` is Mixed_6d, and ``conv`` is what leaves
      the block's 1 x 1 branch, after the ReLU.

    The network and its TensorFlow-1 bilinear resize (no antialiasing) to 299 pixels are torch-fidelity's. Any other
    weights than the published ones are named by their hash, so that their distance is never taken for a FID.

    Args:
        weights: path of the weight file, or None: torch's cache, filled by a download of 96 MB.

    Raises:
        InputError: torch-fidelity is not installed, or the weights are missing, damaged or cannot be downloaded.
    """

    def __init__(self, *, weights: str | None = None):
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise InputError("InceptionV3 features need torch-fidelity: pip install 'latentdiff[eval]'") from error
        path = _published() if weights is None else Path(weights)
        read_weights(path, what=_WHAT, remedy=_REMEDY)  # torch-fidelity unpickles without this guard
        self.sha256 = durable.sha256(path)
        self.published = self.sha256 == INCEPTION_SHA256
        self.name = INCEPTION_NAME if self.published else f"inception-sha256-{self.sha256[:8]}"
        self.layers = {POOL: 2048, LOGITS: 1008, SPATIAL: SPATIAL_CHANNELS * 17 * 17}
        wanted = ["2048", "logits_unbiased"]
        try:
            self.network = FeatureExtractorInceptionV3(self.name, wanted, feature_extractor_weights_path=str(path))
        except RuntimeError as error:
            raise InputError(f"'{path}' does not hold the weights of {_WHAT} ({in_short(error)}); {_REMEDY}") from error

    def forward(self, images: Tensor, batch: Batch, layers: Collection[str] = (POOL,)) -> dict[str, Tensor]:
        check_images(images)
        found: dict[str, Tensor] = {}

        def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            found[SPATIAL] = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

        hook = self.network.Mixed_6d.branch1x1.register_forward_hook(keep)
        try:
            with full_precision(images.device), torch.no_grad():
                found[POOL], found[LOGITS] = self.network(images)
        finally:
            hook.remove()
        return {layer: found[layer] for layer in layers}

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {
            "network": "Inception of TensorFlow, 2015-12-05",
            "weights_sha256": self.sha256,
            "resize": "299 x 299, bilinear of TensorFlow 1, no antialiasing",
            "library": f"torch-fidelity {version('torch-fidelity')}",
        }


def _published() -> Path:
    """In torch's cache, where other programs look for it too."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not cached.is_file():
        cached.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(INCEPTION_SOURCE, str(cached), hash_prefix="6726825d", progress=False)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"Inception weights are not in '{cached}' and did not download ({error}); {_REMEDY}"
            ) from error
    return cached

"""CLIP models of open_clip as feature networks: images and captions in one space."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.config.errors import InputError
from latentdiff.metrics.features.base import CAPTION_CUT, POOL, TEXT, check_images, full_precision
from latentdiff.metrics.features.pillow import pil_images
from latentdiff.models.open_clip_model import load_open_clip
from latentdiff.models.open_clip_tokenizer import OpenClipTokenizer
from latentdiff.models.weights import tensors_sha256
from latentdiff.nn.freeze import freeze
from latentdiff.types import Batch


class OpenClipFeatures(nn.Module):
    """Embeddings of images and of their captions, not normalised (CLIP, arXiv:2103.00020).

    - ``pool``: of the image.
    - ``text``: of ``prefix`` + caption, cut at the model's 77 tokens as open_clip does.
    - ``caption_cut``: 1 where that cut anything, else 0.

    Images go through open_clip's own preprocessing for the model, on the CPU through Pillow.

    Args:
        model: an open_clip model name. OpenAI's weights belong to the names that end in ``-quickgelu``.
        weights: a pretrained tag of that model (downloaded), or the path of a ``.pt`` or ``.safetensors`` file.
        prefix: put before each caption; Hessel et al. (arXiv:2104.08718) take "A photo depicts ".
        model_config: folder with open_clip model configurations to add, or None.

    Raises:
        InputError: no such model, or weights that cannot be had or do not fit.
    """

    published = False

    clip: Any
    """A model of open_clip."""

    def __init__(
        self,
        *,
        model: str = "ViT-B-32-quickgelu",
        weights: str = "openai",
        prefix: str = "",
        model_config: str | None = None,
    ):
        super().__init__()
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        clip = load_open_clip(model=model, weights=weights, model_config=model_config, option="features")
        self.clip, self.prefix = freeze(clip), prefix
        self.tokenizer = OpenClipTokenizer(model=model)
        self._preprocessing = open_clip.get_model_preprocess_cfg(clip)
        self._preprocess = image_transform_v2(PreprocessCfg(**self._preprocessing), is_train=False)
        self.sha256 = tensors_sha256(clip)
        tag = weights if open_clip.get_pretrained_cfg(model, weights) else f"sha256-{self.sha256[:8]}"
        self.name = f"clip-{model}-{tag}"
        digest = hashlib.sha256(prefix.encode()).hexdigest()
        self.text_name = f"{self.name}-prefix-{digest[:8]}" if prefix else self.name
        width = open_clip.get_model_config(model)["embed_dim"]
        self.layers = {POOL: width, TEXT: width, CAPTION_CUT: 1}

    def forward(self, images: Tensor, batch: Batch, layers: Collection[str] = (POOL,)) -> dict[str, Tensor]:
        """Raises InputError where a layer of the text is asked for and an image has no caption."""
        check_images(images)
        found: dict[str, Tensor] = {}
        with full_precision(images.device), torch.no_grad():
            if POOL in layers:
                x = torch.stack([self._preprocess(image) for image in pil_images(images)])
                found[POOL] = self.clip.encode_image(x.to(images.device))
            if TEXT in layers or CAPTION_CUT in layers:
                captions = [self.prefix + caption for caption in _captions(batch)]
                found[TEXT] = self.clip.encode_text(self.tokenizer(captions).to(images.device))
                long = {caption for caption, _ in self.tokenizer.cut_captions(captions)}
                found[CAPTION_CUT] = torch.tensor([[float(caption in long)] for caption in captions])
        return {layer: found[layer] for layer in layers}

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {
            "tensors_sha256": self.sha256,
            "prefix": self.prefix,
            "resize": "open_clip's own, through Pillow",
            "preprocessing": self._preprocessing,
            "library": f"open_clip {version('open_clip_torch')}",
        }


def _captions(batch: Batch) -> list[str]:
    captions = batch.caption or [""] * len(batch)
    missing = [key for key, caption in zip(batch.keys, captions) if not caption.strip()]
    if missing:
        raise InputError(
            f"a CLIP score compares images with their captions, and sample '{missing[0]}' has none; give data with "
            "captions or 'prompts', or leave that measure out"
        )
    return captions

"""Text through a frozen CLIP text encoder of open_clip."""

from __future__ import annotations

import pickle
import warnings

import torch
from safetensors import SafetensorError
from torch import nn

from latentdiff.conditioning.tokenizer import captions_of, drop_captions
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.nn.freeze import freeze
from latentdiff.types import Batch, Codec, Conditioning


class OpenClipText(nn.Module):
    """Captions -> hidden states (B, 77, width) of one transformer block, after CLIP's final layer norm.

    All 77 positions are attended to, padding included, as Stable Diffusion does (SD 1: the last block, SD 2: the
    penultimate). The null condition is the empty caption.

    Args:
        model: an open_clip model name, e.g. ``ViT-L-14-quickgelu``.
        weights: a pretrained tag of that model (downloaded), or the path of a ``.pt`` or ``.safetensors`` file.
        block: which block's output, counted from the end: 1 = last, 2 = penultimate.
        drop: probability that training sees the empty caption instead.
        model_config: folder with open_clip model configurations to add, or None.

    Raises:
        InputError: no such model, one of another kind than CLIP's, or weights that cannot be had or do not fit.
    """

    parts = ("text",)
    """What ``alone`` gives, each of which guidance can scale by itself."""

    def __init__(self, *, model: str, weights: str, block: int = 2, drop: float = 0.1, model_config: str | None = None):
        super().__init__()
        import open_clip

        if model_config is not None:
            open_clip.add_model_config(model_config)
        if model not in open_clip.list_models():
            raise InputError(f"conditioner.model: open_clip has no model '{model}'; open_clip.list_models() lists them")
        clip = _load(model, weights)
        blocks = len(clip.transformer.resblocks)
        if not 1 <= block <= blocks:
            raise InputError(f"conditioner.block: {model} has the blocks 1 (last) to {blocks}; got {block}")
        clip.visual = None
        self.drop, self.block = drop, block
        self.tokenize = open_clip.get_tokenizer(model)
        self.width = clip.token_embedding.weight.shape[1]
        self.clip = freeze(clip)

    def forward(self, batch: Batch, codec: Codec | None = None, draws: Draws | None = None) -> Conditioning:
        return self._encode(drop_captions(captions_of(batch), self.drop, draws))

    def alone(self, batch: Batch, codec: Codec | None = None) -> dict[str, Conditioning]:
        return {"text": self(batch, codec)}

    def null(self, n: int) -> Conditioning:
        return Conditioning(tokens=self._encode([""]).tokens.expand(n, -1, -1))

    @torch.no_grad()
    def _encode(self, captions: list[str]) -> Conditioning:
        ids = self.tokenize(captions).to(self.clip.token_embedding.weight.device)
        states = self.clip.forward_intermediates(
            text=ids, text_indices=self.block, normalize_intermediates=True, text_output_fmt="NLC"
        )
        return Conditioning(tokens=states["text_intermediates"][0])


def _load(model: str, weights: str) -> nn.Module:
    import open_clip

    if not weights:
        raise InputError("conditioner.weights: name a pretrained tag or a file; without them CLIP is random")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            clip = open_clip.create_model(model, pretrained=weights)
    except UserWarning as error:
        raise InputError(
            f"conditioner.model: '{weights}' was trained with another activation than open_clip's {model} computes "
            f"({error}); use {model.removesuffix('-quickgelu')} or {model.removesuffix('-quickgelu')}-quickgelu"
        ) from error
    except (RuntimeError, OSError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise InputError(
            f"conditioner.weights: could not load '{weights}' for open_clip's {model} ({error}). "
            f"Give one of the tags {tags} on a machine that can download it, or the path of a file: fetch "
            "open_clip_pytorch_model.bin or .safetensors of that tag from its page on the Hugging Face hub"
        ) from error
    if type(clip) is not open_clip.CLIP:
        raise InputError(f"conditioner.model: {model} is a {type(clip).__name__}; only plain CLIP models are supported")
    return clip

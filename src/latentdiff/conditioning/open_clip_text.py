"""Text through a frozen CLIP text encoder of open_clip."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.conditioning.dropping import check_drop, dropped_samples
from latentdiff.conditioning.tokenizer import captions_of, drop_captions
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.models.open_clip_model import load_open_clip
from latentdiff.models.open_clip_tokenizer import OpenClipTokenizer
from latentdiff.nn.freeze import freeze
from latentdiff.types import Batch, Codec, Conditioning


class OpenClipText(nn.Module):
    """Captions -> hidden states (B, L, width) of one transformer block, after CLIP's final layer norm.

    All L = 77 positions are attended to, padding included, as Stable Diffusion does (SD 1: the last block, SD 2: the
    penultimate). The null condition is the empty caption; an empty prompt is the null condition. Captions of more
    tokens are cut, as open_clip does, and counted (``truncated``).

    Args:
        model: an open_clip model name, e.g. ``ViT-L-14-quickgelu``.
        weights: a pretrained tag of that model (downloaded), or the path of a ``.pt`` or ``.safetensors`` file.
        block: which block's output, counted from the end: 1 = last, 2 = penultimate.
        pooled: give also a vector (B, V), the feature that CLIP was trained on: the end token's state after the last
            block and final norm, through the text projection, not normalised (SDXL, arXiv:2307.01952, section 2.1).
        drop: probability that training sees the empty caption instead.
        pad_with_end: fill captions up with the end token, as Stable Diffusion 1 did, not with open_clip's token 0.
        model_config: folder with open_clip model configurations to add, or None.

    Raises:
        InputError: no such model, one whose text half is not open_clip's own transformer, or weights that cannot be had
            or do not fit.
    """

    parts = ("text",)
    """What ``alone`` gives, each of which guidance can scale by itself."""

    clip: Any
    """A model of open_clip."""

    def __init__(
        self,
        *,
        model: str,
        weights: str,
        block: int = 2,
        pooled: bool = False,
        drop: float = 0.1,
        pad_with_end: bool = False,
        model_config: str | None = None,
    ):
        super().__init__()
        clip: Any = load_open_clip(model=model, weights=weights, model_config=model_config, option="conditioner")
        tower = _text_half(clip, model)
        blocks = len(tower.transformer.resblocks)
        if not 1 <= block <= blocks:
            raise InputError(f"conditioner.block: {model} has the blocks 1 (last) to {blocks}; got {block}")
        clip.visual = None
        self.drop, self.block, self.pooled = check_drop(drop), block, pooled
        self.pad_with_end = pad_with_end
        self.tokenizer = OpenClipTokenizer(model=model)
        self.width = tower.token_embedding.weight.shape[1]
        self.clip = freeze(clip)

    def forward(self, batch: Batch, codec: Codec | None = None, draws: Draws | None = None) -> Conditioning:
        captions = captions_of(batch)
        if draws is not None:
            captions = drop_captions(captions, self.dropped(draws)["text"])
        return self._encode(captions)

    def alone(self, batch: Batch, codec: Codec | None = None) -> dict[str, Conditioning]:
        return {"text": self(batch, codec)}

    def null(self, batch: Batch, codec: Codec | None = None) -> Conditioning:
        return self._encode([""]).expand(len(batch))

    def dropped(self, draws: Draws) -> dict[str, Tensor]:
        return {"text": dropped_samples(draws, "text", self.drop)}

    @property
    def truncated(self) -> int:
        """Captions that were cut on this process so far."""
        return self.tokenizer.truncated

    def cut_captions(self, captions: list[str]) -> list[tuple[str, int]]:
        """The captions that would be cut, each with the number of its tokens."""
        return self.tokenizer.cut_captions(captions)

    @torch.no_grad()
    def _encode(self, captions: list[str]) -> Conditioning:
        ids = self.tokenizer(captions)
        if self.pad_with_end:
            ids = padded_with_end(ids)
        found = self.clip.forward_intermediates(
            text=ids.to(self.clip.logit_scale.device, non_blocking=True),
            text_indices=self.block,
            normalize=False,
            normalize_intermediates=True,
            intermediates_only=not self.pooled,
            text_output_fmt="NLC",
        )
        return Conditioning(tokens=found["text_intermediates"][0], vector=found.get("text_features"))


def padded_with_end(ids: Tensor) -> Tensor:
    """CLIP's token ids (B, L) with all that follows an end token, the highest in a row, turned into end tokens."""
    end = ids.amax(dim=1, keepdim=True)
    return torch.where((ids == end).cumsum(dim=1) > 0, end, ids)


def _text_half(clip: Any, model: str) -> Any:
    """The module that has the token embedding and the transformer's blocks."""
    import open_clip
    from open_clip.transformer import TextTransformer

    if type(clip) is open_clip.CLIP:
        return clip
    if type(clip) is open_clip.CustomTextCLIP and type(clip.text) is TextTransformer:
        return clip.text
    half = f" with a {type(clip.text).__name__}" if hasattr(clip, "text") else ""
    raise InputError(
        f"conditioner.model: {model} is a {type(clip).__name__}{half}; expected open_clip's own text transformer. "
        "Text encoders of transformers: conditioner=hf_bert, conditioner=hf_t5"
    )

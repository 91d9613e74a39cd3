"""Text through a frozen encoder of transformers: BERT, T5, CLIP and their kin."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.conditioning.dropping import check_drop, dropped_samples
from latentdiff.conditioning.hf_tokenizer import HfTokenizer
from latentdiff.conditioning.tokenizer import captions_of, drop_captions
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.models.hub import load_pretrained, transformers_module
from latentdiff.nn.freeze import freeze
from latentdiff.types import Batch, Codec, Conditioning

CLIPS = ("clip", "clip_text_model")
"""Model types whose text half has no entry among transformers' text encoders in every version."""


class HfText(nn.Module):
    """Captions -> hidden states (B, max_length, width), float32, and their mask, true on real tokens.

    The encoder runs outside autocast in the precision chosen here: T5's activations overflow float16. The null
    condition is the empty caption, that is its special tokens; an empty prompt is the null condition.

    Args:
        model: a folder, or a model id of the Hugging Face hub. Weights must be safetensors.
        tokenizer: the same for the tokenizer, where it lies elsewhere; None: with the model.
        max_length: most tokens of a caption, special ones included; longer ones are cut and counted (``truncated``).
        block: which block's output, counted from the end. 1 is the model's answer, its last norm included; earlier ones
            are taken as they are, without that norm.
        bfloat16: compute in bfloat16 instead of float32.
        drop: probability that training sees the empty caption instead.

    Raises:
        InputError: a model or tokenizer that cannot be had, is no text encoder, lacks weights or does not fit the
            other; a ``block`` or ``max_length`` that it has not.
    """

    parts = ("text",)
    """What ``alone`` gives, each of which guidance can scale by itself."""

    encoder: Any
    """A model of transformers."""

    def __init__(
        self,
        *,
        model: str,
        tokenizer: str | None = None,
        max_length: int = 77,
        block: int = 1,
        bfloat16: bool = False,
        drop: float = 0.1,
    ):
        super().__init__()
        self.drop, self.block = check_drop(drop), block
        self.tokenizer = HfTokenizer(model=tokenizer or model, max_length=max_length)
        encoder = _load_encoder(model).to(torch.bfloat16 if bfloat16 else torch.float32)
        _check_fit(encoder.config, self.tokenizer, model)
        if not 1 <= block <= encoder.config.num_hidden_layers:
            raise InputError(
                f"conditioner.block: {model} has the blocks 1 (last) to {encoder.config.num_hidden_layers}; got {block}"
            )
        self.width = encoder.config.hidden_size
        self.encoder = freeze(encoder)

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

    def save(self, folder: Path) -> None:
        """Fills the existing ``folder`` with encoder and tokenizer, as ``model`` may name them."""
        self.encoder.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save(folder)

    @torch.no_grad()
    def _encode(self, captions: list[str]) -> Conditioning:
        device = self.encoder.device
        ids, mask = (part.to(device, non_blocking=True) for part in self.tokenizer(captions))
        with torch.autocast(device.type, enabled=False):
            found = self.encoder(input_ids=ids, attention_mask=mask.long(), output_hidden_states=self.block > 1)
        states = found.last_hidden_state if self.block == 1 else found.hidden_states[-self.block]
        return Conditioning(tokens=states.float(), mask=mask)


def _load_encoder(model: str) -> Any:
    """The encoder alone, also of a model with a decoder (T5) or an image half (CLIP)."""
    transformers = transformers_module()
    config = load_pretrained(partial(transformers.AutoConfig.from_pretrained, trust_remote_code=False), model)
    kind = transformers.CLIPTextModel if config.model_type in CLIPS else transformers.AutoModelForTextEncoding
    load = partial(kind.from_pretrained, use_safetensors=True, trust_remote_code=False, output_loading_info=True)
    encoder, found = load_pretrained(load, model)
    missing = sorted(name for name in found["missing_keys"] if "pooler" not in name)  # its output is not used
    if missing:
        raise InputError(
            f"conditioner.model: the weights of '{model}' lack {len(missing)} tensors of a {type(encoder).__name__}, "
            f"first {missing[0]}; transformers would make them up at random"
        )
    return encoder


def _check_fit(config: Any, tokenizer: HfTokenizer, model: str) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"conditioner.tokenizer: it has {tokenizer.vocab_size} tokens, but '{model}' has embeddings of "
            f"{config.vocab_size}; take the model's own"
        )
    places = getattr(config, "max_position_embeddings", None)
    most = None if places is None else min(places, tokenizer.most_places)
    if most is not None and tokenizer.max_length > most:
        raise InputError(f"conditioner.max_length: '{model}' reads at most {most} tokens, got {tokenizer.max_length}")

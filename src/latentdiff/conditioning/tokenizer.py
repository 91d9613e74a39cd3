"""Captions to CLIP's byte-pair tokens, through open_clip's tokenizer (its vocabulary ships with the package)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from latentdiff.config.errors import InputError


class ClipTokenizer:
    """Start token, the caption's tokens, end token, then padding up to ``max_length``.

    Captions beyond the limit are cut and keep their end token; ``truncated`` counts them.
    """

    vocab_size = 49408

    def __init__(self, *, max_length: int):
        self.max_length = max_length
        self.truncated = 0
        self._encode = lru_cache(maxsize=65536)(self._encode_one)

    def _encode_one(self, caption: str) -> tuple[int, ...]:
        from open_clip.tokenizer import _tokenizer

        return (_tokenizer.sot_token_id, *_tokenizer.encode(caption), _tokenizer.eot_token_id)

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """B captions -> token ids int64 (B, L), mask bool (B, L) that is true on real tokens."""
        ids = torch.zeros(len(captions), self.max_length, dtype=torch.int64)
        mask = torch.zeros(len(captions), self.max_length, dtype=torch.bool)
        for row, caption in enumerate(captions):
            tokens = self._encode(caption)
            if len(tokens) > self.max_length:
                self.truncated += 1
                tokens = (*tokens[: self.max_length - 1], tokens[-1])
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = True
        return ids, mask


def captions_of(batch) -> list[str]:
    """The batch's captions; an InputError where the data has none at all."""
    if batch.caption is None:
        raise InputError("this conditioner reads captions, but the batch has none: use data with captions")
    return batch.caption


def drop_captions(captions: list[str], drop: float, draws) -> list[str]:
    """Each caption replaced by the empty one with probability ``drop``; untouched without ``draws`` (not training)."""
    if draws is None or drop == 0:
        return captions
    keep = (draws.uniform("drop/text") >= drop).tolist()
    return [caption if kept else "" for caption, kept in zip(captions, keep)]

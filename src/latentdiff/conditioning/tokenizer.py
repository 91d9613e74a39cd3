"""Captions to token ids: what a tokenizer is, and CLIP's byte pairs (open_clip ships their vocabulary)."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.models.token_limit import TokenLimit
from latentdiff.types import Batch


class Tokenizer(Protocol):
    """B captions -> token ids int64 (B, max_length), mask bool (B, max_length) that is true on real tokens.

    The empty caption has at least one real token.
    """

    vocab_size: int
    """Ids are below it."""
    max_length: int
    truncated: int
    """Captions that were cut at ``max_length`` so far."""

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]: ...
    def cut_captions(self, captions: list[str]) -> list[tuple[str, int]]: ...


class ClipTokenizer:
    """Start token, the caption's tokens, end token, then padding up to ``max_length``.

    Captions beyond the limit are cut and keep their end token.
    """

    vocab_size = 49408

    def __init__(self, *, max_length: int):
        self.max_length = max_length
        self.limit = TokenLimit(reader=f"the text encoder behind CLIP's tokenizer ({max_length})", limit=max_length)
        self._encode = lru_cache(maxsize=65536)(clip_tokens)

    @property
    def truncated(self) -> int:
        return self.limit.truncated

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        encoded = [self._encode(caption) for caption in captions]
        self.limit.count(captions, [len(tokens) for tokens in encoded])
        ids = torch.zeros(len(captions), self.max_length, dtype=torch.int64)
        mask = torch.zeros(len(captions), self.max_length, dtype=torch.bool)
        for row, tokens in enumerate(encoded):
            if len(tokens) > self.max_length:
                tokens = (*tokens[: self.max_length - 1], tokens[-1])
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = True
        return ids, mask

    def cut_captions(self, captions: list[str]) -> list[tuple[str, int]]:
        """The captions that are too long, each with the number of its tokens."""
        return self.limit.over(captions, [len(self._encode(caption)) for caption in captions])


def clip_tokens(caption: str) -> tuple[int, ...]:
    """All tokens of a caption, start and end included."""
    from open_clip.tokenizer import _tokenizer

    return (_tokenizer.sot_token_id, *_tokenizer.encode(caption), _tokenizer.eot_token_id)


def captions_of(batch: Batch) -> list[str]:
    """The batch's captions; an InputError where the data has none at all."""
    if batch.caption is None:
        raise InputError("this conditioner reads captions, but the batch has none: use data with captions")
    return batch.caption


def drop_captions(captions: list[str], dropped: Tensor) -> list[str]:
    """The empty caption where ``dropped`` (bool (B,)), the captions themselves elsewhere."""
    return ["" if gone else caption for caption, gone in zip(captions, dropped.tolist())]

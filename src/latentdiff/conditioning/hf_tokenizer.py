"""Any tokenizer of transformers, such as BERT's word pieces, which LDM's text model reads (arXiv:2112.10752)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.models.hub import load_pretrained, transformers_module
from latentdiff.models.token_limit import TokenLimit


class HfTokenizer:
    """B captions -> token ids int64 (B, max_length), mask bool (B, max_length) that is true on real tokens.

    Captions beyond the limit are cut; special tokens at their ends stay. Padding is on the right.

    Args:
        model: a folder, or a model id of the Hugging Face hub such as ``google-bert/bert-base-uncased``.
        max_length: most tokens of a caption, special ones included.

    Raises:
        InputError: a tokenizer that cannot be had, that cannot pad, or that has no token for the empty caption; a limit
            below 1.
    """

    def __init__(self, *, model: str, max_length: int):
        auto = transformers_module().AutoTokenizer
        if max_length < 1:
            raise InputError(
                f"max_length of the tokenizer '{model}': expected at least 1 (77 is usual), got {max_length}"
            )
        self._tokenize = load_pretrained(partial(auto.from_pretrained, trust_remote_code=False), model)
        if self._tokenize.pad_token is None:
            raise InputError(f"the tokenizer of '{model}' has no padding token: captions of a batch differ in length")
        self._tokenize.padding_side = "right"
        self.vocab_size = len(self._tokenize)
        self.max_length = max_length
        self.limit = TokenLimit(reader=f"the text encoder behind the tokenizer of '{model}'", limit=max_length)
        if self._lengths([""]) == [0]:
            raise InputError(
                f"the tokenizer of '{model}' has no token for the empty caption, which is the null condition: "
                "take one that marks the start or the end"
            )

    @property
    def most_places(self) -> int:
        """The tokens that the tokenizer's own model reads at most; huge where it does not say."""
        return self._tokenize.model_max_length

    @property
    def truncated(self) -> int:
        """Captions that were cut so far."""
        return self.limit.truncated

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        self.limit.count(captions, self._lengths(captions))
        found = self._tokenize(
            captions, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return found["input_ids"], found["attention_mask"].bool()

    def cut_captions(self, captions: list[str]) -> list[tuple[str, int]]:
        """The captions that are too long, each with the number of its tokens."""
        return self.limit.over(captions, self._lengths(captions))

    def save(self, folder: Path) -> None:
        """Fills the existing ``folder`` with its files."""
        self._tokenize.save_pretrained(folder)

    def _lengths(self, captions: list[str]) -> list[int]:
        return [len(ids) for ids in self._tokenize(captions, verbose=False)["input_ids"]]

"""The tokenizer of an open_clip model, which cuts long captions without a word; here they are counted."""

from __future__ import annotations

from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.models.token_limit import TokenLimit


class OpenClipTokenizer:
    """B captions -> token ids int64 (B, L), exactly those of ``open_clip.get_tokenizer(model)``.

    L is the model's context length: CLIP has 77, start and end tokens included.

    Raises:
        InputError: a tokenizer of the Hugging Face hub that cannot be had, or one of a kind whose tokens cannot be
            counted before it cuts them.
    """

    def __init__(self, *, model: str):
        import open_clip
        from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

        try:
            self._tokenize = open_clip.get_tokenizer(model)
        except (ImportError, OSError, ValueError) as error:
            raise InputError(
                f"the tokenizer of open_clip's {model} could not be loaded ({error}); it is one of "
                "the Hugging Face hub: install latentdiff[hf] and load it once where the hub can be reached"
            ) from error
        if isinstance(self._tokenize, HFTokenizer) and not self._tokenize.tokenizer_mode:
            self._lengths = self._hub_lengths
        elif isinstance(self._tokenize, SimpleTokenizer):
            self._lengths = self._byte_pair_lengths
        else:
            raise InputError(f"the tokenizer of open_clip's {model} is of a kind not supported here")
        self.limit = TokenLimit(reader=f"open_clip's {model}", limit=self._tokenize.context_length)

    @property
    def truncated(self) -> int:
        """Captions that were cut so far."""
        return self.limit.truncated

    def __call__(self, captions: list[str]) -> Tensor:
        self.limit.count(captions, self._lengths(captions))
        return self._tokenize(captions)

    def cut_captions(self, captions: list[str]) -> list[tuple[str, int]]:
        """The captions that are too long, each with the number of its tokens."""
        return self.limit.over(captions, self._lengths(captions))

    def _byte_pair_lengths(self, captions: list[str]) -> list[int]:
        return [len(self._tokenize.encode(caption)) + 2 for caption in captions]

    def _hub_lengths(self, captions: list[str]) -> list[int]:
        texts = [self._tokenize.clean_fn(caption) for caption in captions]
        return [len(ids) for ids in self._tokenize.tokenizer(texts, verbose=False)["input_ids"]]

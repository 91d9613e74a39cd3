"""Text through a transformer that is trained along with the denoiser (LDM, arXiv:2112.10752, section 3.3)."""

from __future__ import annotations

from torch import Tensor, nn

from latentdiff.conditioning.dropping import check_drop, dropped_samples
from latentdiff.conditioning.tokenizer import ClipTokenizer, Tokenizer, captions_of, drop_captions
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.models.text_transformer import TextTransformer
from latentdiff.types import Batch, Codec, Conditioning


class TextTransformerConditioner(nn.Module):
    """Captions -> tokens (B, L, width) and their mask.

    The null condition is the empty caption, that is its start and end tokens; an empty prompt is the null condition.
    Captions beyond the tokenizer's limit are cut and counted (``truncated``).

    Args:
        transformer: reads token ids and mask.
        tokenizer: None for CLIP's, as long as the transformer reads. LDM's text model reads BERT's (``HfTokenizer``
            with ``google-bert/bert-base-uncased``, 30522 tokens, 77 long).
        drop: probability that training sees the empty caption instead (classifier-free guidance, arXiv:2207.12598).

    Raises:
        InputError: a tokenizer with more tokens, or longer captions, than the transformer has embeddings for.
    """

    parts = ("text",)
    """What ``alone`` gives, each of which guidance can scale by itself."""

    def __init__(self, *, transformer: TextTransformer, tokenizer: Tokenizer | None = None, drop: float = 0.1):
        super().__init__()
        self.transformer = transformer
        self.drop = check_drop(drop)
        self.tokenizer = ClipTokenizer(max_length=transformer.max_length) if tokenizer is None else tokenizer
        for what, have in (("vocab_size", transformer.vocab_size), ("max_length", transformer.max_length)):
            if getattr(self.tokenizer, what) > have:
                raise InputError(
                    f"conditioner.transformer.{what}: the tokenizer needs {getattr(self.tokenizer, what)}, got {have}"
                )

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

    def _encode(self, captions: list[str]) -> Conditioning:
        device = next(self.parameters()).device
        ids, mask = (part.to(device, non_blocking=True) for part in self.tokenizer(captions))
        return Conditioning(tokens=self.transformer(ids, mask), mask=mask)

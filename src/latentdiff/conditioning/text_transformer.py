"""Text through a transformer that is trained along with the denoiser (LDM, arXiv:2112.10752, section 3.3)."""

from __future__ import annotations

from torch import nn

from latentdiff.conditioning.tokenizer import ClipTokenizer, captions_of, drop_captions
from latentdiff.diffusion.noise import Draws
from latentdiff.models.text_transformer import TextTransformer
from latentdiff.types import Batch, Codec, Conditioning


class TextTransformerConditioner(nn.Module):
    """Captions -> tokens (B, L, width) and their mask. The null condition is the empty caption.

    Args:
        transformer: reads token ids and mask.
        drop: probability that training sees the empty caption instead (classifier-free guidance, arXiv:2207.12598).
    """

    parts = ("text",)
    """What ``alone`` gives, each of which guidance can scale by itself."""

    def __init__(self, *, transformer: TextTransformer, drop: float = 0.1):
        super().__init__()
        self.transformer = transformer
        self.drop = drop
        self.tokenizer = ClipTokenizer(max_length=transformer.max_length)

    def forward(self, batch: Batch, codec: Codec | None = None, draws: Draws | None = None) -> Conditioning:
        return self._encode(drop_captions(captions_of(batch), self.drop, draws))

    def alone(self, batch: Batch, codec: Codec | None = None) -> dict[str, Conditioning]:
        return {"text": self(batch, codec)}

    def null(self, n: int) -> Conditioning:
        one = self._encode([""])
        return Conditioning(tokens=one.tokens.expand(n, -1, -1), mask=one.mask.expand(n, -1))

    def _encode(self, captions: list[str]) -> Conditioning:
        device = next(self.parameters()).device
        ids, mask = (part.to(device, non_blocking=True) for part in self.tokenizer(captions))
        return Conditioning(tokens=self.transformer(ids, mask), mask=mask)

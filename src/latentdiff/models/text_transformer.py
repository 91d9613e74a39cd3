"""A text encoder that is trained along with the backbone (the "transformer" tau of arXiv:2112.10752, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentdiff.config.errors import InputError
from latentdiff.nn.attention import CrossAttention, FeedForward
from latentdiff.nn.embeddings import timestep_embedding


class _RelativeBias(nn.Module):
    """Learned number per head and signed distance between two tokens, added to the logits (T5, arXiv:1910.10683).

    Starts as ALiBi's penalty on distance (arXiv:2108.12409, section 3), steep in the first head and flat in the last:
    words see their neighbours from the start, which a short training would have to learn place by place.
    """

    def __init__(self, *, heads: int, max_length: int) -> None:
        super().__init__()
        slopes = 2.0 ** -(6.0 * torch.arange(heads) / heads)
        distances = torch.arange(1 - max_length, max_length).abs()
        self.table = nn.Parameter(-slopes[:, None] * distances)
        self.max_length = max_length

    def forward(self, length: int) -> Tensor:
        """(heads, length, length)."""
        places = torch.arange(length, device=self.table.device)
        return self.table[:, places[None] - places[:, None] + self.max_length - 1]


class TextBlock(nn.Module):
    """Pre-norm bidirectional self-attention and feed-forward."""

    def __init__(self, *, width: int, heads: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.relative_bias = _RelativeBias(heads=heads, max_length=max_length)
        self.norm1 = nn.LayerNorm(width)
        self.attn = CrossAttention(width=width, heads=heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(width)
        self.ff = FeedForward(width=width, dropout=dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), mask=mask, bias=self.relative_bias(x.shape[1]))
        return x + self.ff(self.norm2(x))


class TextTransformer(nn.Module):
    """Token ids (B, L) -> features (B, L, width); learned positions and relative biases, L <= ``max_length``.

    The default vocabulary is that of CLIP's tokenizer.
    """

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        max_length: int,
        vocab_size: int = 49408,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.width = width
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Parameter(torch.empty(max_length, width))
        self.blocks = nn.ModuleList(
            TextBlock(width=width, heads=heads, max_length=max_length, dropout=dropout) for _ in range(layers)
        )
        self.final_norm = nn.LayerNorm(width)
        self._initialise(layers)

    def _initialise(self, layers: int) -> None:
        """Words stand out from the start: embeddings of unit variance (T5, arXiv:1910.10683) and residual branches
        scaled down with depth (GPT-2). With CLIP's 0.02 the mean over all tokens would drown the words for long.
        Positions start as sinusoids (arXiv:1706.03762, section 3.5) of a quarter of that variance."""
        nn.init.normal_(self.token_embedding.weight, std=1.0)
        places = torch.arange(self.max_length)
        with torch.no_grad():
            self.position_embedding.copy_(0.7 * timestep_embedding(places, self.width, max_period=100.0))
            for block in self.blocks:
                for output in (block.attn.to_out[0], block.ff.net[2]):  # type: ignore[union-attr,index]
                    output.weight.mul_((2 * layers) ** -0.5)  # type: ignore[union-attr]

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens int64 (B, L), mask bool (B, L), True where a token is real; features of masked tokens mean nothing.

        Raises InputError where L exceeds ``max_length``.
        """
        length = tokens.shape[1]
        if length > self.max_length:
            raise InputError(
                f"text transformer: {length} tokens, max_length is {self.max_length}; truncate when tokenizing"
            )
        x = self.token_embedding(tokens) + self.position_embedding[:length]
        for block in self.blocks:
            x = block(x, mask)
        return self.final_norm(x)

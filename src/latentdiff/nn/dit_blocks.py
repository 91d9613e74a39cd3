"""The blocks of the diffusion transformer (DiT, arXiv:2212.09748, section 3.2), over tokens (B, L, width)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.nn.attention import attend, zero_
from latentdiff.nn.norms import RMSNorm
from latentdiff.nn.rotary import rotate

EPS = 1e-6
"""Of every norm, as in the paper's code."""


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to each other.

    ``qk_norm``: RMSNorm of each head's queries and keys before their product, which bounds the logits
    (arXiv:2302.05442, with RMSNorm for its LayerNorm as in arXiv:2403.03206).
    """

    def __init__(self, *, width: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = _head_norms(width // heads, qk_norm)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """``rotary``: the table of ``nn.rotary`` that queries and keys are turned by."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


class TokenAttention(nn.Module):
    """Multi-head attention of tokens to a context (B, S, context_dim)."""

    def __init__(self, *, width: int, heads: int, context_dim: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(context_dim, 2 * width)
        self.q_norm, self.k_norm = _head_norms(width // heads, qk_norm)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask bool (B, S), True where a token of the context counts."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        y = attend(self.q_norm(q), self.k_norm(k), v, mask)
        return self.proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Four times the width and back, with the tanh form of GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """Gated linear unit with SiLU (arXiv:2002.05202, eq. 6), about as many parameters as ``MLP``.

    Its inner width is 2/3 of four times the width, rounded up to a multiple of 8.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 8 * -(-width // 3)  # the ceiling of width / 3
        self.gate_value = nn.Linear(width, 2 * inner)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_value(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class DiTBlock(nn.Module):
    """Self-attention and MLP with adaLN-Zero: an embedding shifts and scales what each reads and gates what it adds.

    With ``context_dim``, attention to a context stands between them, its output layer zero at first (PixArt-alpha,
    arXiv:2310.00426, section 2.3; here it reads normalised tokens). A new block is the identity.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        context_dim: int | None = None,
        qk_norm: bool = False,
        swiglu: bool = False,
        rms_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = plain_norm(width, rms_norm)
        self.attention = SelfAttention(width=width, heads=heads, qk_norm=qk_norm)
        self.cross_norm = None if context_dim is None else plain_norm(width, rms_norm)
        self.cross_attention = None
        if context_dim is not None:
            self.cross_attention = TokenAttention(width=width, heads=heads, context_dim=context_dim, qk_norm=qk_norm)
        self.norm2 = plain_norm(width, rms_norm)
        self.mlp = SwiGLU(width) if swiglu else MLP(width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.dropout = nn.Dropout(dropout)
        xavier_(self)
        zero_(self.modulation)
        if self.cross_attention is not None:
            zero_(self.cross_attention.proj)

    def forward(
        self,
        x: Tensor,
        emb: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """x (B, L, width), emb (B, width), context (B, S, context_dim), mask bool (B, S) -> (B, L, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(emb)[:, None].chunk(6, dim=-1)
        y = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.dropout(self.attention(y, rotary))
        if self.cross_attention is not None and self.cross_norm is not None:
            x = x + self.dropout(self.cross_attention(self.cross_norm(x), context, mask))
        y = self.norm2(x) * (1 + scale2) + shift2
        return x + gate2 * self.dropout(self.mlp(y))


class FinalLayer(nn.Module):
    """Norm, shifted and scaled by the embedding, and a linear layer: tokens to patches. Starts as zero."""

    def __init__(self, *, width: int, out_features: int, rms_norm: bool = False) -> None:
        super().__init__()
        self.norm = plain_norm(width, rms_norm)
        self.modulation = zero_(nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)))
        self.linear = zero_(nn.Linear(width, out_features))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, L, width), emb (B, width) -> (B, L, out_features)."""
        shift, scale = self.modulation(emb)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm(x) * (1 + scale) + shift)


def plain_norm(width: int, rms_norm: bool) -> nn.Module:
    """Without learned numbers: adaLN and the layers behind it have them."""
    if rms_norm:
        return RMSNorm(width, eps=EPS, affine=False)
    return nn.LayerNorm(width, eps=EPS, elementwise_affine=False)


def xavier_(module: nn.Module) -> nn.Module:
    """Uniform Xavier weights and zero biases in every linear layer, as in the paper's code."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
    return module


def _head_norms(width: int, qk_norm: bool) -> tuple[nn.Module, nn.Module]:
    if not qk_norm:
        return nn.Identity(), nn.Identity()
    return RMSNorm(width, eps=EPS), RMSNorm(width, eps=EPS)

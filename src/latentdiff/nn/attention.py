"""Attention blocks with the layout and parameter names of LDM and Stable Diffusion (arXiv:2112.10752, section 3.3)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from latentdiff.nn.norms import GroupNorm

PLAIN_MAX_KEYS = 512
"""On a CPU in bfloat16 the fused kernel's backward pass loses up to 15 times to plain matmuls below this many keys."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v with the softmax in float32.

    q (B, heads, L, d), k and v (B, heads, S, d), mask bool (B, S), True where a key counts, bias (heads, L, S)
    -> (B, heads, L, d). A sample whose keys are all masked gets zeros.
    """
    keys = None if mask is None else mask[:, None, None, :]
    if q.device.type == "cpu" and q.dtype is torch.bfloat16 and k.shape[-2] <= PLAIN_MAX_KEYS:
        return _attend_plain(q, k, v, keys, bias)
    if bias is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
    logits = _added(keys, bias, q.dtype)
    # a row of nothing but the lowest number is an even softmax over masked keys: their values are taken out
    v = v if keys is None else v * keys.transpose(-1, -2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=logits)


def _attend_plain(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None, bias: Tensor | None) -> Tensor:
    """The CPU's softmax kernel computes in float32 and rounds its result to the dtype of the logits."""
    if keys is None and bias is None:
        flat = (x.flatten(0, 1) for x in (q, k, v))
        return _WeightsAgain.apply(*flat, q.shape[-1] ** -0.5).unflatten(0, q.shape[:2])
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    weights = torch.softmax(logits + _added(keys, bias, q.dtype), dim=-1)
    return weights @ (v if keys is None else v * keys.transpose(-1, -2))


class _WeightsAgain(torch.autograd.Function):
    """softmax(scale q k^T) v whose backward pass computes the weights once more instead of keeping them.

    q (N, L, d), k and v (N, S, d). It costs no time and saves the largest activation of self-attention.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        return _weights(q, k, scale) @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = ctx.saved_tensors
        weights = _weights(q, k, ctx.scale)
        d_weights = grad @ v.transpose(-1, -2)
        d_logits = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        none = q.new_empty(1)
        d_q = torch.baddbmm(none, d_logits, k, beta=0, alpha=ctx.scale)
        d_k = torch.baddbmm(none, d_logits.transpose(-1, -2), q, beta=0, alpha=ctx.scale)
        return d_q, d_k, weights.transpose(-1, -2) @ grad, None


def _weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return torch.softmax(torch.baddbmm(q.new_empty(1), q, k.transpose(-1, -2), beta=0, alpha=scale), dim=-1)


def _added(keys: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What is added to the logits, broadcastable to (B, heads, L, S): the lowest number where a key does not count."""
    if keys is None:
        return torch.zeros((), dtype=dtype) if bias is None else bias[None].to(dtype)
    start = torch.zeros(keys.shape, dtype=dtype, device=keys.device) if bias is None else bias[None].to(dtype)
    return start.masked_fill(~keys, torch.finfo(dtype).min)


class CrossAttention(nn.Module):
    """Multi-head attention of ``x`` (B, L, width) to ``context`` (B, S, context_dim), or to itself without one."""

    def __init__(self, *, width: int, heads: int, context_dim: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"attention: the width {width} is not divisible by {heads} heads")
        context_dim = width if context_dim is None else context_dim
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_dim, width, bias=False)
        self.to_v = nn.Linear(context_dim, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """mask bool (B, S); bias (heads, L, S), added to the logits."""
        context = x if context is None else context
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(attend(q, k, v, mask, bias).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """Gated linear unit with GELU (arXiv:2002.05202)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU of four times the width and back."""

    def __init__(self, *, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Dropout(dropout), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Pre-norm self-attention, cross-attention, feed-forward."""

    def __init__(self, *, width: int, heads: int, context_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attn1 = CrossAttention(width=width, heads=heads, dropout=dropout)
        self.ff = FeedForward(width=width, dropout=dropout)
        self.attn2 = CrossAttention(width=width, heads=heads, context_dim=context_dim, dropout=dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context, mask)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer over the positions of a feature map that reads ``context``; starts as the identity.

    ``use_linear``: input and output projections as linear layers (SD 2, SDXL) instead of 1x1 convolutions (LDM, SD 1).
    """

    def __init__(
        self,
        *,
        channels: int,
        heads: int,
        context_dim: int,
        depth: int = 1,
        use_linear: bool = False,
        norm_groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.use_linear = use_linear
        self.norm = GroupNorm(channels, norm_groups, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if use_linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(width=channels, heads=heads, context_dim=context_dim, dropout=dropout)
            for _ in range(depth)
        )
        self.proj_out = nn.Linear(channels, channels) if use_linear else nn.Conv2d(channels, channels, 1)
        zero_(self.proj_out)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, C, h, w), context (B, L, D), mask bool (B, L) -> (B, C, h, w)."""
        size = x.shape[-2:]
        y = self.norm(x)
        if self.use_linear:
            y = self.proj_in(y.flatten(2).transpose(1, 2))
        else:
            y = self.proj_in(y).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            y = block(y, context, mask)
        if self.use_linear:
            y = self.proj_out(y).transpose(1, 2).unflatten(2, size)
        else:
            y = self.proj_out(y.transpose(1, 2).unflatten(2, size))
        return x + y


class AttentionBlock(nn.Module):
    """Self-attention over the positions of a feature map, for networks without context; starts as the identity.

    ``qkv`` holds, head after head, the rows of q, k and v (arXiv:2105.05233, the published layout).
    """

    def __init__(self, *, channels: int, heads: int, norm_groups: int = 32) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"attention: {channels} channels are not divisible by {heads} heads")
        self.heads = heads
        self.norm = GroupNorm(channels, norm_groups, eps=1e-5)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        zero_(self.proj_out)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x).flatten(2)).unflatten(1, (self.heads, 3, -1)).transpose(-1, -2)
        y = attend(*qkv.unbind(2)).transpose(-1, -2).flatten(1, 2)
        return x + self.proj_out(y).view_as(x)


def zero_(module: nn.Module) -> nn.Module:
    """Sets every parameter to zero, so that a residual branch ending in ``module`` starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module

"""A classifier of noisy latents, for classifier guidance (arXiv:2105.05233, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.config.errors import InputError
from latentdiff.diffusion.coefficients import at_least_float32, per_sample
from latentdiff.nn.attention import AttentionBlock, attend
from latentdiff.nn.embeddings import position_embedding, timestep_embedding
from latentdiff.nn.norms import GroupNorm
from latentdiff.nn.resnet import Downsample, ResBlock
from latentdiff.types import Path


class NoisyClassifier(nn.Module):
    """A network with the path whose x_t it is trained on: training and guidance cannot disagree.

    The network sees ``x_t / sqrt(alpha^2 + sigma^2)``, of variance 1 on every path, and the path's network time.
    """

    network: Any

    def __init__(self, *, network: nn.Module, path: Path) -> None:
        super().__init__()
        self.network = network
        self.path = path

    @property
    def classes(self) -> int:
        return self.network.classes

    @property
    def factor(self) -> int:
        return self.network.factor

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t (B, C, h, w), t (B,) in [0, 1] -> logits (B, classes), at least float32."""
        alpha, sigma = self.path.alpha_sigma(t)
        scaled = x_t / per_sample(torch.sqrt(alpha**2 + sigma**2), x_t).to(x_t.dtype)
        return at_least_float32(self.network(scaled, self.path.network_time(t)))

    def check_labels(self, label: Tensor | None, keys: Sequence[str]) -> None:
        """Raises InputError where a sample's label is none of 0 to ``classes`` - 1. Waits for labels on a GPU."""
        if label is None:
            raise InputError("the classifier needs a label per sample, the data has none (.cls); use data with labels")
        strange = ((label < 0) | (label >= self.classes)).nonzero().flatten().tolist()
        if strange:
            shown = ", ".join(f"{keys[i]} ({int(label[i])})" for i in strange[:3])
            raise InputError(
                f"the classifier knows the labels 0 to {self.classes - 1}; {len(strange)} of {len(label)} samples have "
                f"none (-1) or another, first {shown}; label them, leave them out, or set classifier.classes"
            )


class EncoderClassifier(nn.Module):
    """The descending half of the LDM UNet, its middle, and attention pooling: (B, C, h, w), time (B,) -> (B, classes).

    As in arXiv:2105.05233 (its encoder with attention pooling at the lowest size); halving is by convolution, and the
    pooling knows places by a fixed embedding, so that latents of any size that is a multiple of ``factor`` fit.

    Args:
        in_channels: of the latent.
        classes: logits.
        channels, channel_multipliers, num_res_blocks, attention_factors, head_width, patch, norm_groups, dropout: as
            in ``models.backbones.unet``; the middle always has attention.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        classes: int,
        channels: int,
        channel_multipliers: Sequence[int],
        num_res_blocks: int,
        attention_factors: Sequence[int],
        head_width: int,
        patch: int = 1,
        dropout: float = 0.0,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in channel_multipliers]
        _check(classes, widths, attention_factors, head_width)
        self.in_channels, self.classes, self.channels = in_channels, classes, channels
        self.factor = patch * 2 ** (len(widths) - 1)
        embedding = 4 * channels
        self.time_embed = nn.Sequential(nn.Linear(channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.fold = nn.PixelUnshuffle(patch) if patch > 1 else nn.Identity()

        def res(before: int, width: int) -> ResBlock:
            return ResBlock(
                in_channels=before, out_channels=width, embedding=embedding, norm_groups=norm_groups, dropout=dropout
            )

        def attention(width: int) -> AttentionBlock:
            return AttentionBlock(channels=width, heads=width // head_width, norm_groups=norm_groups)

        blocks: list[list[nn.Module]] = [[nn.Conv2d(in_channels * patch**2, channels, 3, padding=1)]]
        now = channels
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                blocks.append([res(now, width), *([attention(width)] if 2**level in attention_factors else [])])
                now = width
            if level < len(widths) - 1:
                blocks.append([Downsample(width)])
        self.input_blocks = nn.ModuleList(nn.ModuleList(block) for block in blocks)
        self.middle_block = nn.ModuleList([res(now, now), attention(now), res(now, now)])
        pool = AttentionPool(width=now, heads=now // head_width, out=classes)
        self.out = nn.Sequential(GroupNorm(now, norm_groups), nn.SiLU(), pool)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Raises InputError where the latent does not fit the constructor's numbers."""
        if x.shape[1] != self.in_channels or x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise InputError(
                f"classifier: expected latents of {self.in_channels} channels, height and width multiples of "
                f"{self.factor}; got {tuple(x.shape[1:])}"
            )
        dtype = next(self.time_embed.parameters()).dtype
        emb = self.time_embed(timestep_embedding(t, self.channels).to(dtype))
        x = self.fold(x)
        for block in (*self.input_blocks, self.middle_block):
            for layer in block:
                x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return self.out(x)


class AttentionPool(nn.Module):
    """(B, width, h, w) -> (B, out): the mean over places asks all places and itself (CLIP, arXiv:2103.00020, 2.4)."""

    def __init__(self, *, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(width, 2 * width)
        self.to_out = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        width, (height, breadth) = x.shape[1], x.shape[-2:]
        mean = x.mean((-2, -1))[:, None]
        places = x + position_embedding(height, breadth, width, x.device).to(x.dtype)
        tokens = torch.cat([mean, places.flatten(2).transpose(1, 2)], dim=1)
        k, v = self.to_kv(tokens).chunk(2, dim=-1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.to_q(mean), k, v))
        return self.to_out(attend(q, k, v).flatten(1))


def _check(classes: int, widths: list[int], attention_factors: Sequence[int], head_width: int) -> None:
    if classes < 2:
        raise InputError(f"classifier.classes: expected at least 2, got {classes}")
    known = [2**i for i in range(len(widths))]
    if strange := [f for f in attention_factors if f not in known]:
        raise InputError(f"classifier: attention_factors {strange} name no level; the down-factors are {known}")
    needing = {widths[-1], *(width for f, width in zip(known, widths) if f in attention_factors)}
    if bad := [width for width in sorted(needing) if width % head_width or width % 4]:
        raise InputError(
            f"classifier: a level of {bad[0]} channels cannot be split into heads of {head_width} and embedded places "
            "(channels divisible by 4); choose other channels or head_width"
        )

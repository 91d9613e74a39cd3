"""Vector quantisation: every latent vector is replaced by its nearest entry of a learned codebook."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws, keyed_generator
from latentdiff.models.autoencoder.bottlenecks.base import Bottleneck, DiagonalGaussian, Latent
from latentdiff.models.autoencoder.bottlenecks.codes import (
    check_indices,
    check_latent,
    counts_of,
    straight_through,
    sum_over_ranks,
    use_of_codes,
)
from latentdiff.nn.precision import at_least_float32

SCORES_AT_ONCE = 2**22
"""Distances held in memory at a time; at 16 MiB they also stay near the cores of a CPU."""
SMOOTHING = 1e-5
"""Laplace smoothing of the counts, in vectors."""


class VQ(Bottleneck):
    """VQ-VAE's bottleneck (arXiv:1711.00937) as in VQGAN (arXiv:2012.09841) and LDM ("VQ-reg.").

    The penalty is ``|sg[z] - e|^2 + commitment |z - sg[e]|^2``, a mean over latent elements; with ``ema_decay`` the
    entries follow averages of the latents instead of the first term. ``commitment`` weighs the encoder's term, as in
    the paper; LDM's published checkpoints were trained with it on the codebook's term.

    In training mode statistics of every forward pass are kept until ``after_batch``, which sums them over the
    micro-batches and the ranks. A model with restarts needs no initialisation from data: what the uniform
    initialisation in [-1 / entries, 1 / entries] leaves unused is moved to latents.

    Args:
        entries: size of the codebook.
        channels: latent channels.
        commitment: weight of the commitment term.
        ema_decay: decay per batch of the averages that the entries follow, 0.99 in the paper; None: by gradient.
        restart_after: an entry unused for so many batches is replaced by a latent of the last one; None: never.

    Raises InputError where one of them is out of its range.
    """

    reduction = "mean"

    channels: int
    counts: Tensor
    idle: Tensor

    def __init__(
        self,
        *,
        entries: int,
        channels: int,
        commitment: float = 0.25,
        ema_decay: float | None = None,
        restart_after: int | None = None,
    ) -> None:
        super().__init__()
        _check(entries, channels, commitment, ema_decay, restart_after)
        self.entries, self.channels, self.commitment = entries, channels, commitment
        self.ema_decay, self.restart_after = ema_decay, restart_after
        self.embedding = _Codebook(entries, channels, learned=ema_decay is None)
        if ema_decay is not None:
            self.register_buffer("counts", torch.ones(entries))
        if restart_after is not None:
            self.register_buffer("idle", torch.zeros(entries, dtype=torch.int64))
        self.training_state = tuple(name for name, _ in self.named_buffers(recurse=False))
        self._statistics: Tensor | None = None
        """(entries, 1 + channels): how many vectors chose each entry, and with averages the sum of them."""
        self._latents: list[Tensor] = []
        """(b, h w, C) of every micro-batch, kept for restarts."""

    def posterior(self, h: Tensor) -> DiagonalGaussian:
        """The latents before quantisation, h (B, C, h, w), as a point mass."""
        return DiagonalGaussian(at_least_float32(h))

    def forward(self, h: Tensor, noise: Tensor) -> Latent:
        """Quantised latents; "codebook" is their mean squared distance, the other logs are of these images alone."""
        z = at_least_float32(h)
        indices = self._nearest(z)
        chosen = self._entries_at(indices)
        counts = counts_of(indices, self.entries, z.dtype)
        if self.training:
            self._collect(z.detach(), indices, counts)
        distance = (z - chosen.detach()).square().mean((1, 2, 3))
        penalty = self.commitment * distance
        if self.ema_decay is None:
            penalty = penalty + (z.detach() - chosen).square().mean((1, 2, 3))
        logs = {"codebook": distance.detach().mean(), **use_of_codes(counts)}
        return Latent(straight_through(z, chosen), DiagonalGaussian(z), penalty, logs)

    def for_decoder(self, z: Tensor) -> Tensor:
        """The nearest entries, with a straight-through gradient."""
        z = at_least_float32(z)
        return straight_through(z, self._entries_at(self._nearest(z)))

    def indices(self, z: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> index of the nearest entry, int64 (B, h, w); the first of equally near ones."""
        check_latent(z, self.channels)
        return self._nearest(at_least_float32(z))

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (B, h, w) -> entries (B, C, h, w). Raises InputError for an index out of range."""
        check_indices(indices, self.entries)
        return self._entries_at(indices)

    @torch.no_grad()
    def after_batch(self, draws: Draws | None = None) -> dict[str, Tensor]:
        """Moves the averages, restarts idle entries; logs perplexity, usage and, with restarts, "restarted".

        Every rank ends with the same codebook, whatever the split of the global batch. Raises ValueError without a
        forward pass in training mode, or where an entry is to be restarted and ``draws`` are missing or not those of
        the images seen.
        """
        if self._statistics is None:
            raise ValueError("after_batch needs a forward pass in training mode before it")
        statistics, latents = sum_over_ranks(self._statistics), self._latents
        self._statistics, self._latents = None, []
        counts = statistics[:, 0]
        logs = use_of_codes(counts)
        if self.ema_decay is not None:
            self._move(counts, statistics[:, 1:], self.ema_decay)
        if self.restart_after is not None:
            self.idle.add_(1).masked_fill_(counts > 0, 0)
            dead = (self.idle >= self.restart_after).nonzero()[:, 0]
            if len(dead):
                self._restart(dead, torch.cat(latents), draws)
            logs["restarted"] = torch.tensor(float(len(dead)), device=counts.device)
        return logs

    def forget_batch(self) -> None:
        self._statistics, self._latents = None, []

    @torch.no_grad()
    def _nearest(self, z: Tensor) -> Tensor:
        # argmin |z - e|^2 = argmin |e|^2 - 2 z e. Writing into ``out`` also keeps autocast away.
        vectors = z.permute(0, 2, 3, 1).reshape(-1, self.channels)
        codebook = self.embedding.weight.to(z.dtype)
        norms = codebook.square().sum(1)
        rows = max(1, SCORES_AT_ONCE // self.entries)
        scores = vectors.new_empty(min(rows, len(vectors)), self.entries)
        nearest = torch.empty(len(vectors), dtype=torch.int64, device=z.device)
        for part, out in zip(vectors.split(rows), nearest.split(rows)):
            out.copy_(torch.addmm(norms, part, codebook.t(), alpha=-2.0, out=scores[: len(part)]).argmin(1))
        return nearest.view(len(z), *z.shape[2:])

    def _entries_at(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.embedding.weight).permute(0, 3, 1, 2)

    @torch.no_grad()
    def _collect(self, z: Tensor, indices: Tensor, counts: Tensor) -> None:
        vectors = z.flatten(2).transpose(1, 2)
        statistics = counts[:, None]
        if self.ema_decay is not None:
            sums = torch.zeros_like(self.embedding.weight, dtype=z.dtype)
            sums.index_add_(0, indices.flatten(), vectors.flatten(0, 1))
            statistics = torch.cat([statistics, sums], 1)
        self._statistics = statistics if self._statistics is None else self._statistics + statistics
        if self.restart_after is not None:
            self._latents.append(vectors.clone())

    def _move(self, counts: Tensor, sums: Tensor, decay: float) -> None:
        """arXiv:1711.00937, appendix A.1, equations 6 to 8. The averaged sum m = e N is not stored: it follows."""
        total = self.embedding.weight * _smoothed(self.counts)[:, None]
        self.counts.lerp_(counts.to(self.counts.dtype), 1.0 - decay)
        total.lerp_(sums.to(total.dtype), 1.0 - decay)
        self.embedding.weight.copy_(total / _smoothed(self.counts)[:, None])

    def _restart(self, dead: Tensor, latents: Tensor, draws: Draws | None) -> None:
        """Puts the entries ``dead`` on distinct latents of the global batch; latents (b, positions, C) of this rank."""
        if draws is None or draws.rows.stop - draws.rows.start != len(latents):
            got = "none" if draws is None else f"those of {draws.rows.stop - draws.rows.start} images"
            raise ValueError(f"restarting codes needs the draws of the {len(latents)} images seen, got {got}")
        positions = latents.shape[1]
        total = draws.total * positions
        generator = keyed_generator(draws.seed, draws.number, "codebook")
        places = torch.randperm(total, generator=generator)[torch.arange(len(dead)) % total].to(latents.device)
        image, position = places // positions - draws.rows.start, places % positions
        own = (image >= 0) & (image < len(latents))
        vectors = latents.new_zeros(len(dead), self.channels)
        vectors[own] = latents[image[own], position[own]]
        self.embedding.weight[dead] = sum_over_ranks(vectors).to(self.embedding.weight.dtype)
        self.idle[dead] = 0
        if self.ema_decay is not None:
            self.counts[dead] = 1.0


class _Codebook(nn.Module):
    """Holds the entries under the published name ``embedding.weight``: a parameter where the gradient moves them, else
    a buffer, which no optimiser touches and the averaged model copies as it is."""

    weight: Tensor

    def __init__(self, entries: int, channels: int, *, learned: bool) -> None:
        super().__init__()
        weight = torch.empty(entries, channels).uniform_(-1.0 / entries, 1.0 / entries)
        if learned:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)


def _smoothed(counts: Tensor) -> Tensor:
    """Laplace-smoothed counts with the same total, so that no entry is divided by zero."""
    total = counts.sum()
    return (counts + SMOOTHING) / (total + len(counts) * SMOOTHING) * total


def _check(entries: int, channels: int, commitment: float, ema_decay: float | None, restart_after: int | None) -> None:
    faults = [
        f"{name} must be {wanted}, got {value}"
        for name, value, wanted, good in (
            ("entries", entries, "at least 1", entries >= 1),
            ("channels", channels, "at least 1", channels >= 1),
            ("commitment", commitment, "0 or more", commitment >= 0.0),
            ("ema_decay", ema_decay, "in [0, 1), or null", ema_decay is None or 0.0 <= ema_decay < 1.0),
            ("restart_after", restart_after, "at least 1, or null", restart_after is None or restart_after >= 1),
        )
        if not good
    ]
    if faults:
        raise InputError(f"VQ bottleneck: {'; '.join(faults)}")

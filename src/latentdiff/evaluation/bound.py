"""The variational bound of a denoiser over a data set, in bits per number of the whitened latent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.bound import Bound, variational_bound
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.noise import seeded_noise
from latentdiff.evaluation.engine import Samples, image_seed, index_chunks
from latentdiff.types import Batch, Codec, Conditioner

LEVELS = 128
"""Noise levels per sample unless told otherwise. A whole table of 1000 would cost 1000 calls of the network."""

MEANING = (
    "bits per number of the whitened latent: of -log p(z | condition) for draws z of stage one's posterior, a density "
    "per unit of z. The last step, from the least noisy z to z itself, is a Gaussian around the denoiser's estimate "
    "with that level's sigma / alpha as its standard deviation. May be negative; to be compared between models on the "
    "same first stage alone; says nothing of the decoder and is not bits per pixel"
)
"""What the numbers are, for whoever shows them."""


@torch.no_grad()
def evaluate_bound(
    *,
    denoiser: Denoiser,
    conditioner: Conditioner,
    codec: Codec,
    samples: Samples,
    num_images: int,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    levels: int | None = LEVELS,
) -> dict[str, float]:
    """The mean over ``num_images`` samples: an upper bound on what their latents cost, without guidance, in float32.

    Latent, noise and levels of sample i depend on ``seed`` and i alone, so that models are compared on the same
    draws, however the samples are batched.

    Args:
        denoiser: in eval mode, usually the averaged weights.
        samples: with images; must hold ``num_images``.
        levels: noise levels per sample, each one call of the network; unbiased for any number. A table with fewer
            entries takes them all. None: every entry of a table.

    Returns:
        ``bits_per_dim`` and its three terms ``prior``, ``diffusion`` and ``reconstruction``, which add up to it, in
        the unit of ``MEANING``; ``spread``, the standard deviation of ``bits_per_dim`` between samples, of data and
        draws together; ``standard_error`` of the mean (both 0 for one sample).

    Raises:
        InputError: no samples are asked for, or they have no images; what ``variational_bound`` refuses.
        ValueError: the denoiser is in training mode.
    """
    if num_images < 1 or batch_size < 1:
        raise InputError(f"num_images and batch_size must be at least 1; got {num_images} and {batch_size}")
    if denoiser.training:
        raise ValueError("the denoiser is in training mode, its dropout would be active; call .eval() on it")
    levels, device = _levels(denoiser, levels), torch.device(device)
    found: dict[str, list[Tensor]] = {"prior": [], "diffusion": [], "reconstruction": []}
    elements = 1
    for chunk in index_chunks(num_images, batch_size):
        batch = samples(chunk).to(device)
        seeds = [image_seed(seed, i) for i in chunk]
        bound = _of_batch(batch, seeds, denoiser, conditioner, codec, levels)
        elements = bound.elements
        for name, values in found.items():
            values.append(getattr(bound, name).double().cpu())
    terms = {name: torch.cat(values) / (elements * math.log(2)) for name, values in found.items()}
    total = sum(terms.values())
    spread = total.std().item() if num_images > 1 else 0.0
    means = {name: values.mean().item() for name, values in terms.items()}
    return {
        "bits_per_dim": total.mean().item(),
        **means,
        "spread": spread,
        "standard_error": spread / math.sqrt(num_images),
    }


def _levels(denoiser: Denoiser, wanted: int | None) -> int | None:
    """As many of a table's entries as there are; the first one belongs to the reconstruction."""
    table = denoiser.path.steps
    if wanted is None or table is None:
        return wanted
    return min(wanted, int(denoiser.t_max * table + 1e-6) - 1)


def _of_batch(
    batch: Batch,
    seeds: list[int],
    denoiser: Denoiser,
    conditioner: Conditioner,
    codec: Codec,
    levels: int | None,
) -> Bound:
    if batch.image is None:
        raise InputError("the bound is one on images' latents, the samples have no images; give data with images")
    if len(batch) != len(seeds):
        raise InputError(f"{len(seeds)} samples were asked for, {len(batch)} came; lower num_images")
    device = batch.image.device
    with torch.autocast(device.type, enabled=False):
        mean, std = codec.moments(batch.image.float() / 127.5 - 1.0)
        shape = tuple(mean.shape[1:])
        x0 = codec.draw((mean, std), seeded_noise(seeds, "bound posterior", shape).to(device))
        cond = conditioner(batch, codec)

        def noise_at(i: int) -> Tensor:
            return seeded_noise(seeds, f"bound {i}", shape).to(device)

        return variational_bound(denoiser, x0, cond, noise_at=noise_at, steps=levels)

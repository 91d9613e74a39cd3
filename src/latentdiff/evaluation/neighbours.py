"""The training images nearest to generated ones: a model that repeats what it was trained on shows here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

NEAREST = 3


@dataclass(frozen=True)
class Neighbours:
    """For each of n samples the ``NEAREST`` of the training images that were looked at, nearest first.

    ``images``: uint8 (n, k, 3, H, W). ``distances``: float32 (n, k), Euclidean, between the features called
    ``features``. ``searched``: training images in all.
    """

    images: Tensor
    distances: Tensor
    features: str
    searched: int


def nearest(
    samples: Tensor, training: Iterable[tuple[Tensor, Tensor]], features: str, count: int = NEAREST
) -> Neighbours:
    """Of features (n, width) of samples, among (features (m, width), uint8 images (m, 3, H, W)) of training images.

    One block of training images is in memory at a time. Of two that are equally far the one that came first is taken.
    Raises ValueError where there is no training image.
    """
    samples, searched = samples.double().cpu(), 0
    images, distances = None, None
    for seen, pictures in training:
        apart = torch.cdist(samples, seen.double().cpu(), compute_mode="donot_use_mm_for_euclid_dist")
        candidates = pictures.cpu().expand(len(samples), *pictures.shape)
        searched += len(pictures)
        if distances is not None:
            apart, candidates = torch.cat([distances, apart], dim=1), torch.cat([images, candidates], dim=1)
        order = apart.argsort(dim=1, stable=True)[:, :count]
        distances = apart.gather(1, order)
        images = torch.stack([row[chosen] for row, chosen in zip(candidates, order)])
    if images is None:
        raise ValueError("there is no training image to look among")
    return Neighbours(images, distances.float(), features, searched)

"""Scenes of the embedded world as a batch with everything that a condition can be."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from latentdiff.metrics.low_resolution import resized
from latentdiff.shapes.renderer import render, segmentation
from latentdiff.shapes.scene import attributes, sample_scene
from latentdiff.types import Batch

SCENES = 60


@pytest.fixture(scope="session")
def scenes() -> Batch:
    """The first validation scenes at 64 px, each with its right half as the hole."""
    drawn = [sample_scene(0, i, split="val") for i in range(SCENES)]
    image = torch.from_numpy(np.stack([render(scene) for scene in drawn])).permute(0, 3, 1, 2).contiguous()
    mask = torch.zeros(SCENES, 1, 64, 64, dtype=torch.uint8)
    mask[..., 32:] = 1
    return Batch(
        keys=[str(i) for i in range(SCENES)],
        image=image,
        label=torch.tensor([scene.label for scene in drawn]),
        segmentation=torch.from_numpy(np.stack([segmentation(scene) for scene in drawn])),
        mask=mask,
        low_res=resized(image, (16, 16)),
        attributes=[attributes(scene) for scene in drawn],
    )


@pytest.fixture(scope="session")
def measured(scenes: Batch):
    """``measured(metric, images=None, batch=scenes, cuts=())``: its results when they come in these parts."""

    def run(metric, images=None, batch=scenes, cuts=()):
        images = batch.image if images is None else images
        bounds = [0, *cuts, len(batch)]
        for start, stop in reversed(list(pairwise(bounds))):
            metric.update(images[start:stop], batch.rows(start, stop))
        return metric.compute()

    return run

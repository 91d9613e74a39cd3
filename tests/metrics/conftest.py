"""Scenes of the embedded world as a batch with everything that a condition can be."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from latentdiff.metrics.low_resolution import resized
from latentdiff.metrics.on_features import Naming
from latentdiff.metrics.reference import MeasuredReference
from latentdiff.metrics.rows import JoinedRows
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
    """``measured(metric, images=None, batch=scenes, cuts=())``: its results when they come in these parts.

    Lists go through JSON, as in an evaluation's files.
    """

    def run(metric, images=None, batch=scenes, cuts=()):
        images = batch.image if images is None else images
        bounds = [0, *cuts, len(batch)]
        parts = []
        for start, stop in reversed(list(pairwise(bounds))):
            columns = metric.measure(images[start:stop], batch.rows(start, stop))
            stored = {name: json.loads(json.dumps(v)) if isinstance(v, list) else v for name, v in columns.items()}
            parts.append((start, stored))
        return metric.result(JoinedRows(parts))

    return run


@pytest.fixture(scope="session")
def on_sets():
    """``on_sets(measure, generated, real=None, part=None)``: results of a measure on features (N, d) of the layer
    ``pool``, or on a dict of layers, that come in parts of this size. The features are called ``net``."""

    def rows(features, part):
        layers = features if isinstance(features, dict) else {"pool": features}
        count = len(next(iter(layers.values())))
        starts = range(0, count, part or count)
        return JoinedRows([(s, {name: x[s : s + (part or count)] for name, x in layers.items()}) for s in starts])

    def run(measure, generated, real=None, part=None):
        made = rows(generated, part)
        reference = None if real is None else MeasuredReference(rows(real, part))
        return measure(made, reference, Naming("net", published=False, count=len(made)))

    return run

"""The nearest training images of samples, of which one is a training image itself."""

from types import SimpleNamespace

import pytest
import torch

from latentdiff.app.evaluation.neighbours import BLOCK, neighbours_of
from latentdiff.evaluation.chunks import ChunkFolder
from latentdiff.evaluation.engine import Work, fill, measures_of
from latentdiff.metrics.features.random_conv import RandomConvFeatures
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.on_features import OnFeatures
from latentdiff.types import Batch

IMAGES = torch.randint(0, 256, (BLOCK + 9, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Training:
    """The first ``count`` of ``IMAGES``, as ``DataModule.training_ranges`` gives a training set."""

    def __init__(self, count):
        self.count = min(count, len(IMAGES))

    def __len__(self):
        return self.count

    def in_order(self, ranges):
        for one in ranges:
            yield Batch(keys=list(map(str, one)), image=IMAGES[one.start : one.stop])


@pytest.fixture
def measured(tmp_path):
    """A folder with the rows of five images, the third of which is the training image ``BLOCK + 2``."""
    images = IMAGES[:5].flip(-1).clone()
    images[2] = IMAGES[BLOCK + 2]
    metrics = {"other": object(), "frechet": OnFeatures(features=RandomConvFeatures(), measures=[FrechetDistance()])}
    work = Work(5, 2)
    folder = ChunkFolder(tmp_path, work.chunks)

    def samples(indices):
        return Batch(keys=[""] * len(indices), image=images[indices.start : indices.stop])

    measures = measures_of({"frechet": metrics["frechet"]})
    fill(folder, work, lambda batch, seeds: batch.image, samples, measures)
    return folder, metrics


def found(measured, samples, among):
    folder, metrics = measured
    data = SimpleNamespace(training_ranges=Training)
    return neighbours_of(folder, data, metrics, torch.device("cpu"), samples=samples, among=among)


def test_a_copied_training_image_is_found_at_distance_0(measured):
    near = found(measured, samples=3, among=1000)
    assert (near.images.shape, near.searched, near.features) == ((3, 3, 3, 16, 16), BLOCK + 9, "randconv-v1")
    assert torch.equal(near.images[2, 0], IMAGES[BLOCK + 2])
    assert near.distances[2, 0] < 1e-3 < near.distances[0, 0]
    assert torch.equal(near.distances, near.distances.sort(dim=1).values)


def test_only_as_many_training_images_are_looked_at_as_were_asked_for(measured):
    near = found(measured, samples=5, among=BLOCK)
    assert (len(near.images), near.searched) == (5, BLOCK)
    assert near.distances[2, 0] > 1e-3, "the copied one is not among them"


def test_none_where_nothing_is_asked_for_or_no_metric_took_the_layer(measured):
    folder, metrics = measured
    assert found(measured, samples=0, among=9) is None
    assert found(measured, samples=3, among=0) is None
    assert found((folder, {"other": object()}), samples=3, among=9) is None
    assert found((folder, {"unseen": metrics["frechet"]}), samples=3, among=9) is None

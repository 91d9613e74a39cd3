"""Baselines with known images, and which metrics see them."""

from dataclasses import replace

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import keyed_generator
from latentdiff.evaluation.baselines import BicubicEnlargement, LatentGaussian, LatentMoments, RealImages
from latentdiff.evaluation.controls import Control, control_results, fill_controls
from latentdiff.evaluation.engine import Work
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.low_resolution import LowResolutionConsistency, resized
from latentdiff.metrics.on_features import OnFeatures
from latentdiff.metrics.rows import JoinedRows
from latentdiff.types import Batch


class Pixels:
    """A codec whose latents are the images, with a posterior of this spread."""

    channels, factor = 3, 1

    def __init__(self, spread=0.0):
        self.spread = spread

    def moments(self, image):
        return image, torch.full_like(image, self.spread)

    def decode(self, z):
        return z


def pictures(count, key=0):
    return torch.randint(0, 256, (count, 3, 8, 8), generator=keyed_generator(key), dtype=torch.uint8)


def test_moments_of_latents_are_those_of_all_images_and_of_the_posterior():
    images = pictures(50)
    found = LatentMoments.of(images.split(7), Pixels(), "cpu")
    expected = images.float() / 127.5 - 1
    assert found.count == 50
    assert torch.allclose(found.mean, expected.mean(0), atol=1e-6)
    assert torch.allclose(found.std, expected.std(0, correction=0), atol=1e-5)
    wide = LatentMoments.of(images.split(7), Pixels(0.5), "cpu")
    assert torch.allclose(wide.std, (found.std**2 + 0.25).sqrt(), atol=1e-5)
    with pytest.raises(InputError, match="at least one image"):
        LatentMoments.of([], Pixels(), "cpu")


def test_gaussian_latents_have_the_moments_and_depend_on_the_seed_alone():
    mean, std = torch.linspace(-0.4, 0.4, 12).view(3, 2, 2), torch.linspace(0.02, 0.15, 12).view(3, 2, 2)
    gaussian = LatentGaussian(codec=Pixels(), moments=LatentMoments(mean, std, 9))
    images = gaussian(Batch(keys=["x"] * 4000), list(range(4000)))
    drawn = images.float() / 127.5 - 1
    assert torch.allclose(drawn.mean(0), mean, atol=0.012)
    assert torch.allclose(drawn.std(0) / std, torch.ones_like(std), atol=0.06)
    flat = drawn.flatten(1)
    assert (torch.corrcoef(flat.T) - torch.eye(12)).abs().max() < 0.08
    assert torch.equal(gaussian(Batch(keys=["y"]), [7])[0], images[7])
    assert gaussian.describe()["fitted_on_images"] == 9


def test_bicubic_enlargement_is_that_of_the_small_image():
    images = pictures(3)
    batch = Batch(keys=list("abc"), image=images, low_res=resized(images, (4, 4)))
    assert torch.equal(BicubicEnlargement(device="cpu")(batch, [0, 1, 2]), resized(batch.low_res, (8, 8)))
    with pytest.raises(InputError, match="small images"):
        BicubicEnlargement(device="cpu")(Batch(keys=["a"], image=images[:1]), [0])
    with pytest.raises(InputError, match="real images"):
        RealImages(device="cpu")(Batch(keys=["a"]), [0])


class MeanColour:
    name, layers, published = "colour", {"pool": 3}, False

    def to(self, device):
        return self

    def __call__(self, images, batch, layers):
        return {"pool": images.float().mean(dim=(2, 3))}


def samples(indices):
    image = torch.stack([pictures(1, i)[0] for i in indices])
    return Batch(keys=[str(i) for i in indices], image=image, low_res=resized(image, (4, 4)))


def training(indices):
    return samples(range(indices.start + 50, indices.stop + 50))


REAL = RealImages(device="cpu")
CONTROLS = {
    "reconstructions": Control(REAL, samples, 12),
    "bicubic": Control(BicubicEnlargement(device="cpu"), samples, 12),
    "training_images": Control(REAL, training, 9, conditioned=False),
    "one": Control(REAL, training, 1, conditioned=False),
}
WORK = Work(count=12, size=4)
METRICS = {
    "frechet": OnFeatures(features=MeanColour(), measures=[FrechetDistance()]),
    "low": LowResolutionConsistency(),
}


def references():
    measured = [(0, METRICS["frechet"].measure_real(samples(range(12)).image, samples(range(12))))]
    return {"frechet": METRICS["frechet"].reference(JoinedRows(measured))}


def test_controls_are_measured_against_the_model_s_references(tmp_path):
    done = []
    fill_controls(tmp_path, CONTROLS, METRICS, WORK, progress=done.append)
    found = control_results(tmp_path, CONTROLS, METRICS, WORK, references())
    assert {name: set(values) for name, values in found.items()} == {
        "reconstructions": {"frechet", "low"},
        "bicubic": {"frechet", "low"},
        "training_images": {"frechet"},  # "one" is an image too few for a distance
    }
    assert found["reconstructions"]["frechet"]["fd_colour_n12"] == pytest.approx(0, abs=1e-6)
    assert found["reconstructions"]["low"]["low_res_psnr"] == 100
    assert set(found["training_images"]["frechet"]) == {"fd_colour_n9"}
    assert found["bicubic"]["frechet"]["fd_colour_n12"] > 1e-3
    assert sum(done) == 12 + 12 + 9


def test_ranks_share_the_work_and_nothing_is_done_twice(tmp_path):
    """Together they find what one finds; after it no image is made again."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    fill_controls(alone, CONTROLS, METRICS, WORK)
    for rank in (1, 0):
        fill_controls(shared, CONTROLS, METRICS, replace(WORK, rank=rank, ranks=2))
    known = references()
    expected = control_results(alone, CONTROLS, METRICS, WORK, known)
    assert control_results(shared, CONTROLS, METRICS, WORK, known) == expected
    again = []
    fill_controls(shared, CONTROLS, METRICS, WORK, progress=again.append)
    assert again == []


def test_controls_without_a_metric_are_left_out(tmp_path):
    controls = {"gaussian": Control(REAL, samples, 4, conditioned=False)}
    only = {"low": LowResolutionConsistency()}
    fill_controls(tmp_path, controls, only, WORK)
    assert control_results(tmp_path, controls, only, WORK) == {}
    assert list(tmp_path.iterdir()) == []

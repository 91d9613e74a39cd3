import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from latentdiff.config.errors import InputError
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.parameterization import Sample, V, Velocity
from latentdiff.diffusion.path import RectifiedFlow, ScaledLinearDDPM
from latentdiff.evaluation.bound import VariationalBound
from latentdiff.evaluation.engine import index_chunks
from latentdiff.metrics.rows import JoinedRows
from latentdiff.types import Batch, Conditioning

MEAN, STD = 0.5, 0.6
SHAPE = (2, 4, 4)


class Exact(Denoiser):
    """The optimal denoiser of latents N(MEAN, STD^2); the condition is an error on its estimate."""

    def __init__(self, path, parameterization):
        super().__init__(backbone=nn.Identity(), path=path, parameterization=parameterization)
        self.calls = 0

    def denoise(self, x_t, t, cond):
        self.calls += 1
        alpha, sigma = (c.view(-1, 1, 1, 1) for c in self.path.alpha_sigma(t))
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return MEAN + gain * (x_t - alpha * MEAN) + cond.vector.view(-1, 1, 1, 1)


CODEC = SimpleNamespace(
    moments=lambda image: (torch.full((len(image), *SHAPE), MEAN), torch.full((len(image), *SHAPE), STD)),
    draw=lambda moments, noise: moments[0] + moments[1] * noise,
)


def samples(indices):
    image = torch.zeros(len(indices), 3, 8, 8, dtype=torch.uint8)
    return Batch(keys=[str(i) for i in indices], image=image, label=torch.tensor(list(indices)))


def run(path=None, parameterization=None, offset=0.0, num_images=200, batch_size=64, **changes):
    denoiser = Exact(path or RectifiedFlow(), parameterization or Velocity()).eval()
    settings = {
        "conditioner": lambda batch, codec: Conditioning(vector=torch.full((len(batch), 1), offset)),
        "codec": CODEC,
        "seed": 0,
        "device": "cpu",
    }
    metric = VariationalBound(denoiser=denoiser, **(settings | changes))
    parts = []
    for chunk in reversed(index_chunks(num_images, batch_size)):
        batch = replace(samples(chunk), start=chunk.start)
        parts.append((chunk.start, metric.measure(batch.image, batch)))
    return metric.result(JoinedRows(parts)), denoiser


ENTROPY = 0.5 * math.log2(2 * math.pi * math.e * STD**2)


@pytest.mark.parametrize("parameterization", [Velocity(), Sample()])
def test_the_exact_denoiser_of_gaussian_latents_pays_their_entropy(parameterization):
    found, _ = run(parameterization=parameterization)
    assert found["bits_per_dim"] == pytest.approx(ENTROPY, abs=4 * found["standard_error"] + 0.002)
    assert found["standard_error"] < 0.03
    terms = found["prior"] + found["diffusion"] + found["reconstruction"]
    assert found["bits_per_dim"] == pytest.approx(terms, abs=1e-9)


def test_a_table_pays_a_little_more():
    found, denoiser = run(path=ScaledLinearDDPM(), parameterization=V())
    error = 4 * found["standard_error"]
    assert ENTROPY - error < found["bits_per_dim"] < ENTROPY + 0.05 + error
    assert found["prior"] > 0
    assert denoiser.calls == 4 * 129


def test_a_worse_denoiser_pays_more():
    exact, _ = run(levels=32)
    worse, _ = run(levels=32, offset=0.05)
    assert worse["bits_per_dim"] > exact["bits_per_dim"] + 0.5
    assert worse["prior"] == exact["prior"]


def test_a_short_table_takes_all_its_entries():
    path = ScaledLinearDDPM(steps=10)
    found, denoiser = run(path=path, parameterization=V(), num_images=3)
    assert denoiser.calls == 9 + 1
    assert run(path=path, parameterization=V(), num_images=3, levels=None)[0] == found


def test_batches_and_more_samples_change_no_sample():
    one = [run(num_images=n, levels=8)[0] for n in (1, 2, 3)]
    parts = [n * found["bits_per_dim"] for n, found in enumerate(one, 1)]
    assert one[0]["spread"] == one[0]["standard_error"] == 0.0
    expected = torch.tensor([parts[0], parts[1] - parts[0], parts[2] - parts[1]], dtype=torch.float64)
    assert one[2]["spread"] == pytest.approx(expected.std().item(), rel=1e-6)
    assert run(num_images=3, levels=8, batch_size=1)[0] == pytest.approx(one[2], rel=1e-6)
    assert run(num_images=3, levels=8, seed=1)[0]["bits_per_dim"] != one[2]["bits_per_dim"]


def test_what_cannot_be_measured_is_refused():
    exact = Exact(RectifiedFlow(), Velocity()).eval()
    with pytest.raises(InputError, match="have no images"):
        VariationalBound(denoiser=exact, conditioner=None, codec=CODEC, seed=0, device="cpu").check(Batch(keys=["a"]))
    with pytest.raises(InputError, match="got 0"):
        run(num_images=1, levels=0)
    with pytest.raises(ValueError, match="training mode"):
        VariationalBound(denoiser=exact.train(), conditioner=None, codec=CODEC, seed=0, device="cpu")

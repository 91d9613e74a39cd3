from dataclasses import replace

import pytest
import torch
from torch import nn

from latentdiff.config.errors import InputError
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.grids import Leading, Uniform
from latentdiff.diffusion.guidance import ClassifierFree, Unguided
from latentdiff.diffusion.noise import seeded_noise
from latentdiff.diffusion.parameterization import Sample
from latentdiff.diffusion.path import RectifiedFlow
from latentdiff.diffusion.samplers.ddim import DDIM
from latentdiff.diffusion.samplers.euler import Euler
from latentdiff.generation.pipeline import LatentPipeline, Reconstruction, to_uint8
from latentdiff.types import Batch, Conditioning


class FakeCodec:
    """A latent pixel is the mean of a 2x2 block in three channels."""

    channels, factor = 3, 2

    def moments(self, image):
        mean = nn.functional.avg_pool2d(image, 2)
        return mean, torch.full_like(mean, 100.0)

    def draw(self, moments, noise):
        return moments[0] + moments[1] * noise

    def decode(self, z):
        assert z.dtype == torch.float32
        return z.repeat_interleave(2, 2).repeat_interleave(2, 3)


class LabelConditioner:
    def __call__(self, batch, codec, draws=None):
        return Conditioning(vector=batch.label[:, None].float())

    def null(self, n):
        return Conditioning(vector=torch.zeros(n, 1))


class LabelBackbone(nn.Module):
    """Predicts x0 = label / 10 everywhere, plus ``mix`` of a convolution of x."""

    def __init__(self, mix=0.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        nn.init.normal_(self.conv.weight, std=0.3, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.conv.bias)
        self.mix, self.dtypes = mix, set()

    def forward(self, x, t, cond):
        y = self.conv(x)
        self.dtypes.add(y.dtype)
        return self.mix * torch.tanh(y) + cond.vector[:, :, None, None] / 10


def pipeline(mix=0.0, **changes):
    denoiser = Denoiser(backbone=LabelBackbone(mix), path=RectifiedFlow(), parameterization=Sample()).eval()
    parts = {
        "denoiser": denoiser,
        "conditioner": LabelConditioner(),
        "codec": FakeCodec(),
        "sampler": Euler(),
        "grid": Uniform(),
        "steps": 4,
        "guidance": Unguided(),
        "image_size": 8,
    }
    return LatentPipeline(**(parts | changes))


def batch(*labels):
    return Batch(keys=[str(v) for v in labels], label=torch.tensor(labels))


def test_a_known_denoiser_gives_known_pixels():
    images = pipeline()(batch(-5, 0, 10), [1, 2, 3])
    assert images.shape == (3, 3, 8, 8)
    assert images.dtype == torch.uint8
    # round((x + 1) * 127.5) of -0.5, 0, 1
    assert [sorted(set(image.flatten().tolist())) for image in images] == [[64], [128], [255]]


def test_guidance_gets_condition_and_null():
    images = pipeline(guidance=ClassifierFree(scale=2.0))(batch(-5), [1])
    assert set(images.flatten().tolist()) == {0}


@pytest.mark.parametrize("sampler", [Euler(), DDIM(eta=1.0)])
def test_an_image_depends_on_its_own_condition_and_seed_alone(sampler):
    made = pipeline(mix=0.5, sampler=sampler)
    together = made.latents(batch(1, 2, 3, 4), [10, 11, 12, 13])
    for i in range(4):
        alone = made.latents(batch(i + 1), [10 + i])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)
    assert (together[0] - made.latents(batch(1), [99])[0]).abs().max() > 0.01


def test_noise_reaches_the_sampler_exactly_and_keyed_by_seed_and_step():
    seen = {}

    def spy(denoise, path, x, times, noise_at, on_step):
        seen.setdefault("x", []).append(x)
        seen.setdefault("noise", []).append([noise_at(i) for i in range(2)])
        return x

    made = pipeline(sampler=spy)
    for seeds in ([5, 6], [6]):
        made.latents(batch(*[0] * len(seeds)), seeds)
    assert torch.equal(seen["x"][0][1:], seen["x"][1])
    assert torch.equal(seen["x"][1], seeded_noise([6], "start", (3, 4, 4)))
    for step in range(2):
        assert torch.equal(seen["noise"][0][step][1:], seen["noise"][1][step])
    draws = [seen["x"][1], *seen["noise"][1]]
    assert all((a - b).abs().max() > 0.1 for i, a in enumerate(draws) for b in draws[:i])


def test_start_has_the_marginal_deviation_of_whitened_data():
    class Wide(RectifiedFlow):
        def alpha_sigma(self, t):
            return torch.full_like(t, 3.0), torch.full_like(t, 4.0)

    made = pipeline(sampler=lambda denoise, path, x, *rest: x)
    made.denoiser.path = Wide()
    assert torch.allclose(made.latents(batch(0), [6]), 5.0 * seeded_noise([6], "start", (3, 4, 4)))


def test_precision_is_that_of_the_network_alone():
    full, half = pipeline(mix=0.5), pipeline(mix=0.5, precision=torch.bfloat16)
    a, b = full.latents(batch(1, 2), [0, 1]), half.latents(batch(1, 2), [0, 1])
    assert half.denoiser.backbone.dtypes == {torch.bfloat16}
    assert full.denoiser.backbone.dtypes == {torch.float32}
    assert a.dtype == b.dtype == torch.float32
    assert torch.allclose(a, b, atol=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(full.latents(batch(1, 2), [0, 1]), a)


def test_rectangles_and_on_step():
    made = pipeline(image_size=(8, 16))
    visited = []
    latents = made.latents(batch(3), [0], on_step=lambda step, t, x, x0: visited.append((step, round(float(t), 2))))
    assert latents.shape == (1, 3, 4, 8)
    assert visited == [(0, 0.75), (1, 0.5), (2, 0.25), (3, 0.0)]


def test_uint8_rule():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5])
    assert to_uint8(values).tolist() == [0, 0, 128, 255, 255, 0, 1]


def test_reconstruction_is_the_posterior_mean():
    x = torch.randint(0, 256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    source = replace(batch(0, 1), image=x)
    assert torch.equal(Reconstruction(codec=FakeCodec(), device="cpu")(source, [0, 1]), x)
    with pytest.raises(InputError, match="need images"):
        Reconstruction(codec=FakeCodec(), device="cpu")(batch(0), [0])


def test_refusals():
    with pytest.raises(InputError, match=r"multiple of the first stage's factor 2; got \(9, 9\)"):
        pipeline(image_size=9)
    with pytest.raises(InputError, match="RectifiedFlow"):
        pipeline(grid=Leading())
    with pytest.raises(ValueError, match="got 2 seeds for a batch of 1"):
        pipeline()(batch(0), [0, 1])
    made = pipeline()
    made.denoiser.train()
    with pytest.raises(ValueError, match="training mode"):
        made(batch(0), [0])


def test_describes_itself_for_the_card():
    card = pipeline(sampler=DDIM(eta=0.5), guidance=ClassifierFree(scale=3.0)).describe()
    assert card["sampler"] == {"name": "DDIM", "eta": 0.5}
    assert card["guidance"] == {"name": "ClassifierFree", "scale": 3.0}
    assert (card["steps"], card["times"]) == (4, [1.0, 0.75, 0.5, 0.25, 0.0])
    assert (card["path"], card["precision"], card["latent_shape"]) == ("RectifiedFlow", "float32", [3, 4, 4])

from dataclasses import replace

import pytest
import torch
from torch import nn

from latentdiff.config.errors import InputError
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.grids import Leading, Uniform
from latentdiff.diffusion.guidance import Autoguidance, ClassifierFree, ClassifierGuidance, Several, Unguided
from latentdiff.diffusion.noise import seeded_noise
from latentdiff.diffusion.parameterization import Sample
from latentdiff.diffusion.path import RectifiedFlow
from latentdiff.diffusion.samplers.ddim import DDIM
from latentdiff.diffusion.samplers.euler import Euler
from latentdiff.generation.pipeline import LatentPipeline, Reconstruction, to_uint8
from latentdiff.models.classifier import NoisyClassifier
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

    def null(self, batch, codec):
        return Conditioning(vector=torch.zeros(len(batch), 1))

    def alone(self, batch, codec):
        return {"label": self(batch, codec)}


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


def test_what_is_known_around_a_hole_is_as_good_as_the_codec_can_say_it():
    """The hole has an odd edge: cells of 2x2 pixels that lie partly in it are made of known and of made pixels."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8, generator=generator)
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    mask[..., 3:7, 2:6] = 1
    made = pipeline()(replace(batch(10), image=image, mask=mask), [1])
    reconstruction = Reconstruction(codec=FakeCodec(), device="cpu")(replace(batch(10), image=image), [1])
    touched = nn.functional.max_pool2d(mask.float(), 2).repeat_interleave(2, 2).repeat_interleave(2, 3) > 0
    known = ~touched.expand_as(image)
    assert torch.equal(made[known], reconstruction[known])
    assert torch.all(made[0, :, 4:6, 2:6] == 255)
    seam = torch.where(mask > 0, 255, image)[0, :, 2:4, 2:4].float().mean((1, 2))
    assert torch.all((made[0, :, 2, 2].float() - seam).abs() <= 1)


def test_guidance_gets_condition_and_null():
    images = pipeline(guidance=ClassifierFree(scale=2.0))(batch(-5), [1])
    assert set(images.flatten().tolist()) == {0}


def test_a_negative_condition_takes_the_place_of_the_empty_one():
    made = pipeline(guidance=ClassifierFree(scale=3.0))
    latents = made.latents(batch(1, 2), [0, 1], negative=batch(3, 4))
    expected = torch.tensor([0.3 + 3 * (0.1 - 0.3), 0.4 + 3 * (0.2 - 0.4)]).view(2, 1, 1, 1)
    assert torch.allclose(latents, expected.expand_as(latents))


def test_parts_of_the_conditioner_reach_the_guidance_that_scales_them():
    latents = pipeline(guidance=Several(scales={"label": 2.0})).latents(batch(3), [0])
    assert torch.allclose(latents, torch.full_like(latents, 0.6))


def test_the_guide_reads_its_own_conditioner():
    class Doubling(nn.Module):
        def forward(self, batch, codec):
            return Conditioning(vector=2 * batch.label[:, None].float())

    guide = Denoiser(backbone=LabelBackbone(), path=RectifiedFlow(), parameterization=Sample())
    own = pipeline(guidance=Autoguidance(guide=guide, conditioner=Doubling(), scale=3.0)).latents(batch(4), [0])
    assert torch.allclose(own, torch.full_like(own, 0.8 + 3 * (0.4 - 0.8)))
    shared = pipeline(guidance=Autoguidance(guide=guide, scale=3.0)).latents(batch(4), [0])
    assert torch.allclose(shared, torch.full_like(shared, 0.4))


class Brightness(nn.Module):
    """Class 1 is bright: logits 0 and the mean of x, which it looks at in the last step alone."""

    classes, factor = 2, 1

    def forward(self, x, t):
        mean = x.flatten(1).mean(1) * (t < 300)
        return torch.stack([torch.zeros_like(mean), mean], 1)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_a_classifier_steers_to_the_label_of_each_sample(precision):
    classifier = NoisyClassifier(network=Brightness(), path=RectifiedFlow())
    plain = pipeline(precision=precision).latents(batch(0, 1), [1, 2])
    guided = ClassifierGuidance(classifier=classifier, scale=500.0)
    steered = pipeline(guidance=guided, precision=precision).latents(batch(0, 1), [1, 2])
    assert not steered.requires_grad
    assert steered[0].mean() < plain[0].mean() - 0.05
    assert steered[1].mean() > plain[1].mean() + 0.05
    off = pipeline(guidance=ClassifierGuidance(classifier=classifier, scale=0.0)).latents(batch(-1), [1])
    assert torch.allclose(off, torch.full_like(off, -0.1))


def test_a_classifier_needs_a_label_that_it_knows():
    classifier = NoisyClassifier(network=Brightness(), path=RectifiedFlow())
    made = pipeline(guidance=ClassifierGuidance(classifier=classifier, scale=2.0))
    with pytest.raises(InputError, match=r"knows the labels 0 to 1; 2 of 3 samples .* first -1 \(-1\), 2 \(2\)"):
        made.latents(batch(-1, 1, 2), [0, 1, 2])
    with pytest.raises(InputError, match="needs a label per sample"):
        made.latents(Batch(keys=["a"]), [0])


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
    several = pipeline(guidance=Several(scales={"label": 2.0})).describe()["guidance"]
    assert several == {"name": "Several", "scales": {"label": 2.0}}
    assert (card["steps"], card["times"]) == (4, [1.0, 0.75, 0.5, 0.25, 0.0])
    assert (card["path"]["name"], card["precision"], card["latent_shape"]) == ("RectifiedFlow", "float32", [3, 4, 4])

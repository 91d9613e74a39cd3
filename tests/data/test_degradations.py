from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from latentdiff.config.errors import InputError
from latentdiff.data.blur import gaussian_blur
from latentdiff.data.conditions import Frame
from latentdiff.data.degradations import Blur, Degraded, Jpeg, Noise


def noisy(size=32, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, size, size), dtype=np.uint8))


def apply(degraded, image, seed=0):
    size = image.shape[-1]
    return degraded(None, Frame(size, size, 0, 0, size, size, False, size, size), image, np.random.default_rng(seed))


def reduced(image, factor):
    size = (image.shape[-1] // factor,) * 2
    return torch.nn.functional.interpolate(image[None], size=size, mode="bicubic", antialias=True)[0]


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_without_options_it_is_the_bicubic_resize(factor):
    image = noisy()
    assert torch.equal(apply(Degraded(factor=factor), image), reduced(image, factor))
    never = Degraded(factor=factor, blur=Blur(probability=0), noise=Noise(probability=0), jpeg=Jpeg(probability=0))
    assert torch.equal(apply(never, image), reduced(image, factor))


def test_a_flat_image_stays_flat_without_noise():
    image = torch.full((3, 64, 64), 93, dtype=torch.uint8)
    degraded = Degraded(factor=4, blur=Blur(probability=1, sigma=(1, 4)), jpeg=Jpeg(probability=1, quality=(90, 90)))
    assert (apply(degraded, image) == 93).all()


def test_steps_come_in_the_order_that_is_told():
    image = noisy(64)
    blur, noise, jpeg = Blur(probability=1), Noise(probability=1), Jpeg(probability=1)
    rng = np.random.default_rng(5)
    expected = jpeg(noise(reduced(blur(image, rng), 2), rng), rng)
    assert torch.equal(apply(Degraded(factor=2, blur=blur, noise=noise, jpeg=jpeg), image, seed=5), expected)


def test_a_blurred_point_is_a_gaussian_of_that_sigma():
    point = torch.zeros(1, 41, 41)
    point[0, 20, 20] = 1
    blurred = gaussian_blur(point, 2.5)[0].double()
    x = torch.arange(41) - 20.0
    assert blurred.sum() == pytest.approx(1, abs=1e-6)
    assert torch.allclose(blurred, blurred.T)
    assert (blurred.sum(0) * x**2).sum().sqrt() == pytest.approx(2.5, rel=0.03)  # less for the tails that are cut off
    assert torch.equal(gaussian_blur(point, 0), point)


def test_blur_draws_its_probability_and_sigma():
    image = torch.zeros(3, 1, 81, dtype=torch.uint8)
    image[:, :, 40:] = 255
    widths = []
    for seed in range(300):
        slope = Blur(probability=0.4, sigma=(1, 5))(image, np.random.default_rng(seed))[0, 0].double().diff()
        at = torch.arange(80) + 0.5
        widths.append(float(((slope * at**2).sum() / 255 - ((slope * at).sum() / 255) ** 2).clamp(min=0).sqrt()))
    blurred = [width for width in widths if width > 0]
    assert abs(len(blurred) / 300 - 0.4) < 4 * (0.24 / 300) ** 0.5
    assert 0.8 < min(blurred) < 1.3
    assert 4.3 < max(blurred) < 5.2


def test_noise_has_its_deviation_in_each_channel():
    image = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    added = Noise(probability=1, deviation=(10, 10))(image, np.random.default_rng(0)).double() - 128
    assert added.std((1, 2)).tolist() == pytest.approx([10] * 3, rel=0.05)
    assert torch.corrcoef(added.flatten(1)).triu(1).abs().max() < 0.07


def test_jpeg_is_pillow_s_at_the_quality_drawn():
    image = noisy(16)
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=40)
    out = Jpeg(probability=1, quality=(40, 40))(image, np.random.default_rng(0))
    assert np.array_equal(out.permute(1, 2, 0).numpy(), np.asarray(Image.open(file)))
    several = {
        Jpeg(probability=1, quality=(40, 42))(image, np.random.default_rng(s)).numpy().tobytes() for s in range(40)
    }
    assert len(several) == 3


def test_the_same_generator_gives_the_same_image():
    degraded = Degraded(factor=2, blur=Blur(probability=1), noise=Noise(probability=1), jpeg=Jpeg(probability=1))
    image = noisy()
    before = image.clone()
    first, again, other = (apply(degraded, image, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(image, before)


def test_factors_that_do_not_reduce_or_do_not_divide_are_refused():
    for factor in (1, 0, -2):
        with pytest.raises(InputError, match="would not be smaller than the image"):
            Degraded(factor=factor)
    with pytest.raises(InputError, match="factor 5 does not divide the image size 32"):
        apply(Degraded(factor=5), noisy())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blur(probability=1.5), "Blur: expected a probability"),
        (lambda: Blur(probability=1, sigma=(2, 1)), r"Blur: expected sigma .* got \[2, 1\]"),
        (lambda: Noise(probability=1, deviation=(-1, 1)), "Noise: expected deviation"),
        (lambda: Jpeg(probability=1, quality=(0, 50)), "Jpeg: expected quality"),
        (lambda: Jpeg(probability=-0.1), "Jpeg: expected a probability"),
    ],
)
def test_senseless_options_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.grids import Karras, Leading, Linspace, Shifted, Trailing, UniformLogSNR
from latentdiff.diffusion.noise import seeded_noise
from latentdiff.diffusion.path import CosineVP, KarrasVE, LinearDDPM, RectifiedFlow, ScaledLinearDDPM
from latentdiff.diffusion.samplers.ddim import DDIM
from latentdiff.diffusion.samplers.ddpm import DDPM
from latentdiff.diffusion.samplers.dpmpp_2m import DPMSolverPP2M
from latentdiff.diffusion.samplers.dpmpp_2m_sde import DPMSolverPP2MSDE
from latentdiff.diffusion.samplers.euler import Euler
from latentdiff.diffusion.samplers.euler_ancestral import EulerAncestral
from latentdiff.diffusion.samplers.heun import Heun
from latentdiff.diffusion.samplers.plms import PLMS
from latentdiff.diffusion.samplers.unipc import UniPC
from latentdiff.generation.img2img import last_steps
from latentdiff.metrics.reconstruction import psnr

STD = 0.5  # of the data that the fixture knows
PATHS = [RectifiedFlow(), CosineVP(), KarrasVE(), LinearDDPM(), ScaledLinearDDPM()]
named = {"ids": lambda value: type(value).__name__}


def test_strength_is_a_share_of_the_steps_as_in_diffusers():
    for steps in (4, 20, 50):
        times = torch.linspace(1, 0, steps + 1)
        for strength in (0.3, 0.5, 0.75, 0.8, 1.0):
            kept = last_steps(times, strength)
            assert len(kept) - 1 == min(int(steps * strength), steps)
            assert torch.equal(kept, times[-len(kept) :])
    assert len(last_steps(torch.linspace(1, 0, 101), 0.29)) == 30  # 0.29 * 100 is 28.999...


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan")])
def test_strength_is_in_the_unit_interval(strength):
    with pytest.raises(InputError, match=r"strength: expected a share of the steps in \(0, 1\], got"):
        last_steps(torch.linspace(1, 0, 11), strength)


def test_a_strength_of_no_step_is_refused_with_the_least_that_goes():
    times = torch.linspace(1, 0, 8)
    with pytest.raises(InputError, match=r"0\.14 of 7 steps is not one step; give at least 0\.1429") as refused:
        last_steps(times, 0.14)
    assert len(last_steps(times, float(str(refused.value).split("least ")[1].split(",")[0]))) == 2


@pytest.mark.parametrize("sampler", [DDIM(), Euler(), DPMSolverPP2M(), Heun(), PLMS(), UniPC()], **named)
@pytest.mark.parametrize("path", PATHS, **named)
def test_ends_where_the_probability_flow_leads_from_the_noised_image(gaussian, pictured, path, sampler):
    """For data N(0, STD^2), x / sqrt(alpha^2 STD^2 + sigma^2) is constant along the flow."""
    made = gaussian(path, sampler=sampler, steps=100)
    got = made.latents(pictured, [1, 2, 3, 4], strength=0.6)
    t = made.times[40]
    alpha, sigma = path.alpha_sigma(t)
    z0 = torch.nn.functional.avg_pool2d(pictured.image / 127.5 - 1, 2)
    start = alpha * z0 + sigma * seeded_noise([1, 2, 3, 4], "start", (3, 8, 8))
    exact = STD / (alpha**2 * STD**2 + sigma**2).sqrt() * start
    assert (got - exact).abs().max() < 0.04 * exact.abs().max()


@pytest.mark.parametrize("sampler", [DDIM(), DDPM(), EulerAncestral(), DPMSolverPP2MSDE()], **named)
@pytest.mark.parametrize("path", PATHS, **named)
def test_the_result_leaves_the_image_as_strength_grows(gaussian, pictured, path, sampler):
    """From log-SNR 3 to -2; on the even grid a strength is a time."""
    made = gaussian(path, sampler=sampler, steps=40)
    strengths = path.time_at(torch.tensor([3.0, 1.0, -0.5, -2.0])).tolist()
    images = [made.decode(made.latents(pictured, [0, 1, 2, 3], strength=strength)) for strength in strengths]
    values = [psnr(image, pictured.image).mean().item() for image in images]
    assert all(a > b + 0.2 for a, b in pairwise(values)), values


@pytest.mark.parametrize(
    "grid", [Leading(), Trailing(), Linspace(), Shifted(shift=3.0), UniformLogSNR(), Karras()], **named
)
def test_works_on_every_grid(gaussian, pictured, grid):
    made = gaussian(ScaledLinearDDPM(), grid=grid, sampler=UniPC(), steps=10)
    seen = []
    made.latents(pictured, [0] * 4, lambda step, t, x, x0: seen.append((step, t.item())), strength=0.4)
    assert seen == [(i, t.item()) for i, t in enumerate(made.times[7:])]
    assert made.count_steps(0.4) == 4


def test_full_strength_keeps_a_trace_only_where_alpha_is_left(gaussian, pictured):
    other = replace(pictured, image=255 - pictured.image)
    for path, trace in ((CosineVP(), False), (RectifiedFlow(), False), (ScaledLinearDDPM(), True)):
        made = gaussian(path, steps=10)
        first, second = (made.latents(batch, [0] * 4, strength=1.0) for batch in (pictured, other))
        assert ((first - second).abs().max() > 1e-3) == trace
    plain = gaussian(CosineVP(), steps=10)
    assert torch.allclose(plain.latents(pictured, [0] * 4, strength=1.0), plain.latents(pictured, [0] * 4), atol=1e-6)


def test_image_to_image_needs_an_image_of_the_model_s_size(gaussian, pictured):
    with pytest.raises(InputError, match="image: expected one of 16x16 pixels per sample, the batch has none"):
        gaussian().latents(replace(pictured, image=None), [0] * 4, strength=0.5)
    with pytest.raises(InputError, match="image: expected one of 16x16 pixels per sample, got 8x16"):
        gaussian().latents(replace(pictured, image=pictured.image[:, :, :8]), [0] * 4, strength=0.5)

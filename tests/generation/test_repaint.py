from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from zlib import crc32

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.grids import Leading, Trailing, Uniform
from latentdiff.diffusion.path import CosineVP, KarrasVE, LinearDDPM, RectifiedFlow, ScaledLinearDDPM
from latentdiff.diffusion.samplers.ddim import DDIM
from latentdiff.diffusion.samplers.ddpm import DDPM
from latentdiff.diffusion.samplers.dpmpp_2m import DPMSolverPP2M
from latentdiff.diffusion.samplers.dpmpp_2m_sde import DPMSolverPP2MSDE
from latentdiff.diffusion.samplers.euler_ancestral import EulerAncestral
from latentdiff.diffusion.samplers.heun import Heun
from latentdiff.diffusion.samplers.plms import PLMS
from latentdiff.diffusion.samplers.unipc import UniPC
from latentdiff.diffusion.trajectory import Trajectory
from latentdiff.generation.repaint import Known, Repaint, latent_hole, noised

PATHS = [RectifiedFlow(), CosineVP(), KarrasVE(), LinearDDPM(), ScaledLinearDDPM(zero_terminal_snr=True)]
named = {"ids": lambda value: type(value).__name__}


def published(steps: int, jump: int, resample: int) -> list[int]:
    """Steps that are left, one state after the other, of the schedule that the paper describes: from the noise down to
    the data, up by ``jump`` wherever a counter of that place is not used up."""
    counters = dict.fromkeys(range(1, steps - jump + 1, jump), resample - 1)
    left, visited = steps, [steps]
    while left > 0:
        left -= 1
        visited.append(left)
        if counters.get(left, 0) > 0:
            counters[left] -= 1
            left += jump
            visited.append(left)
    return visited


@pytest.mark.parametrize(("steps", "jump", "resample"), [(250, 10, 10), (50, 2, 10), (20, 7, 3), (9, 8, 2), (5, 1, 4)])
def test_the_schedule_is_the_paper_s(steps, jump, resample):
    legs = Repaint(jump_length=jump, resample=resample).legs(steps)
    visited = [steps - k for first, last in legs for k in range(first, last + 1)]
    assert visited == published(steps, jump, resample)
    assert Repaint(jump_length=jump, resample=resample).count(steps) == sum(a > b for a, b in pairwise(visited))


def test_jumps_are_a_twenty_fifth_of_the_steps_by_default():
    for steps, jump in ((250, 10), (50, 2), (20, 1), (2, 1)):
        assert Repaint(resample=3).legs(steps) == Repaint(jump_length=jump, resample=3).legs(steps)


def test_numbers_that_do_not_fit_are_refused():
    for wrong in ({"resample": 0}, {"jump_length": 0}):
        with pytest.raises(InputError, match="expected resample and jump_length of at least 1"):
            Repaint(**wrong)
    with pytest.raises(InputError, match="a jump of 10 steps does not fit into 10"):
        Repaint(jump_length=10).legs(10)
    assert Repaint(jump_length=10, resample=1).legs(10) == [(0, 10)]


@pytest.mark.parametrize("path", PATHS, **named)
def test_noising_on_is_the_path_s_own_mixture(path):
    """Of x = alpha z + sigma n it keeps alpha' z, and its noise has variance sigma'^2 in all."""
    for t, later in ((0.1, 0.4), (0.4, 1.0), (0.0, 0.7)):
        t, later = torch.tensor(t, dtype=torch.float64), torch.tensor(later, dtype=torch.float64)
        (alpha, sigma), (alpha_later, sigma_later) = path.alpha_sigma(t), path.alpha_sigma(later)
        zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        of_data, of_noise, fresh = (
            noised(path, alpha * one, t, later, zero),
            noised(path, sigma * one, t, later, zero),
            noised(path, zero, t, later, one),
        )
        torch.testing.assert_close(of_data, alpha_later)
        torch.testing.assert_close(of_noise**2 + fresh**2, sigma_later**2)


# A Gaussian whose coordinates lean on each other: what belongs into the hole is known in closed form

SIZE, SAMPLES = 8, 3000
PLACES = torch.arange(SIZE, dtype=torch.float64)
COVARIANCE = 0.8 ** (PLACES[:, None] - PLACES).abs()
HOLE = (PLACES >= 2) & (PLACES < 6)
TO_HOLE = COVARIANCE[HOLE][:, ~HOLE] @ COVARIANCE[~HOLE][:, ~HOLE].inverse()
"""E[hole | known] = TO_HOLE known."""
LEFT = COVARIANCE[HOLE][:, HOLE] - TO_HOLE @ COVARIANCE[~HOLE][:, HOLE]
"""Covariance of the hole given the known."""


def of_name(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    return torch.randn(SAMPLES, 1, 1, SIZE, generator=generator, dtype=torch.float64)


def correlated(path):
    values, vectors = torch.linalg.eigh(COVARIANCE)

    def denoise(x, t):
        """E[x0 | x_t], coordinate by coordinate in the covariance's own axes."""
        alpha, sigma = (c[0] for c in path.alpha_sigma(t.double()))
        gain = alpha * values / (alpha**2 * values + sigma**2)
        return (x @ vectors * gain) @ vectors.T

    return denoise


def conditional(path, sampler, repaint) -> tuple[float, float]:
    """How far the hole's mean given the known is from the exact one (root mean square over places and samples, by
    regression), and the ratio of its standard deviation given the known to the exact one."""
    times = Uniform()(path, 50)
    alpha, sigma = path.alpha_sigma(times[0])
    z0 = of_name("data") @ torch.linalg.cholesky(COVARIANCE).T
    known = Known(z0, HOLE.view(1, 1, 1, SIZE))
    start = (alpha**2 + sigma**2).sqrt() * of_name("start")
    made = repaint(sampler, correlated(path), path, start, times, known, of_name)
    assert torch.equal(made[..., ~HOLE], z0[..., ~HOLE])
    given = z0[:, 0, 0][:, ~HOLE]
    error = made[:, 0, 0][:, HOLE] - given @ TO_HOLE.T
    shift = given @ torch.linalg.lstsq(given, error).solution
    spread = (error - shift).var(0).sum() / LEFT.trace()
    return shift.square().mean().sqrt().item(), spread.sqrt().item()


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(), DPMSolverPP2M()], **named)
@pytest.mark.parametrize("path", [CosineVP(), RectifiedFlow(), KarrasVE()], **named)
def test_resampling_brings_the_hole_to_its_conditional_law(path, sampler):
    """Putting back alone leaves the mean 0.35 to 0.48 off, ten passes 0.08 to 0.13, of which 0.03 are the regression's
    own (deviation 0.8, 4 known places, 3,000 samples). DDPM's variance in 50 steps is a little small by itself."""
    bias_without, spread_without = conditional(path, sampler, Repaint(resample=1))
    bias, spread = conditional(path, sampler, Repaint(resample=10))
    assert bias < 0.35 * bias_without
    assert bias < 0.16
    assert spread == pytest.approx(1, abs=0.12)
    assert spread < spread_without - 0.1


# In the pipeline

SAMPLERS = [
    DDPM(),
    DDIM(),
    DPMSolverPP2M(),
    DPMSolverPP2MSDE(),
    EulerAncestral(),
    Heun(s_churn=5, s_tmax=10),
    PLMS(),
    UniPC(),
]


@pytest.mark.parametrize("sampler", SAMPLERS, **named)
def test_every_sampler_keeps_what_is_known_and_makes_the_hole(gaussian, pictured, sampler):
    for path, grid in [(path, Uniform()) for path in PATHS] + [(PATHS[3], Leading()), (PATHS[4], Trailing())]:
        made = gaussian(path, sampler=sampler, grid=grid, steps=6)
        got = made.latents(pictured, [0, 1, 2, 3], repaint=Repaint(jump_length=2, resample=3))
        known = torch.nn.functional.avg_pool2d(pictured.image / 127.5 - 1, 2)
        hole = latent_hole(pictured.mask, 2).expand_as(known)
        assert torch.allclose(got[~hole], known[~hole], atol=1e-6)
        assert 0.2 < got[hole].std() < 0.9
        assert (got - known)[hole].abs().mean() > 0.1


def test_a_latent_is_to_be_made_where_any_of_its_pixels_is():
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    mask[0, 0, 3, 4] = 1
    assert latent_hole(mask, 4).tolist() == [[[[False, True], [False, False]]]]


def test_nothing_of_what_stood_in_the_hole_matters(gaussian, pictured):
    made, repaint = gaussian(), Repaint(resample=2)
    other = replace(pictured, image=torch.where(pictured.mask.bool(), 255 - pictured.image, pictured.image))
    assert torch.equal(*(made.latents(batch, [0, 1, 2, 3], repaint=repaint) for batch in (pictured, other)))
    with_strength = [made.latents(batch, [0] * 4, repaint=repaint, strength=0.3) for batch in (pictured, other)]
    assert (with_strength[0] - with_strength[1]).abs().max() > 0.05  # image-to-image begins at the whole image


def test_an_image_depends_on_its_own_seed_alone(gaussian, pictured):
    made, repaint = gaussian(sampler=DDPM()), Repaint(resample=3)
    together = made.latents(pictured, [3, 4, 5, 6], repaint=repaint)
    assert torch.allclose(together[2:3], made.latents(pictured.rows(2, 3), [5], repaint=repaint), atol=1e-6)
    hole = latent_hole(pictured.mask, 2)[:1].expand(1, 3, 8, 8)
    again = made.latents(pictured.rows(0, 1), [9], repaint=repaint)
    assert (again - together[:1])[hole].abs().mean() > 0.1


def test_steps_are_numbered_on_and_a_trajectory_sees_them_all(gaussian, pictured):
    made, repaint, seen = gaussian(steps=5), Repaint(jump_length=2, resample=2), []
    made.latents(pictured, [0] * 4, lambda step, t, x, x0: seen.append((step, round(t.item(), 1))), repaint=repaint)
    times = [
        0.8,
        0.6,
        0.8,
        0.6,
        0.4,
        0.2,
        0.4,
        0.2,
        0.0,
    ]  # down to 3 left, up to 5; down to 1 left, up to 3; to the end
    assert [t for _, t in seen] == times
    assert [step for step, _ in seen] == list(range(len(times)))
    assert made.count_steps(repaint=repaint) == len(times)
    recorder = Trajectory.evenly(len(times), 4, state=True)
    last = made.latents(pictured, [0] * 4, recorder, repaint=repaint)
    assert recorder.frames.shape == (4, 4, 3, 8, 8)
    assert torch.equal(recorder.frames[-1], last)


def test_without_jumps_the_sampler_draws_what_it_does_by_itself(gaussian, pictured):
    made = gaussian(sampler=DDPM())
    everything = replace(pictured, mask=torch.ones_like(pictured.mask))
    assert torch.equal(made.latents(everything, [0] * 4, repaint=Repaint(resample=1)), made.latents(pictured, [0] * 4))


def test_a_hole_needs_an_image_and_a_mask(gaussian, pictured):
    for missing in ("image", "mask"):
        with pytest.raises(InputError, match=f"{missing}: expected one of 16x16 pixels per sample, the batch has none"):
            gaussian().latents(replace(pictured, **{missing: None}), [0] * 4, repaint=Repaint())
    with pytest.raises(InputError, match="a jump of 9 steps does not fit into 9"):
        gaussian(steps=10).latents(pictured, [0] * 4, strength=0.9, repaint=Repaint(jump_length=9))

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.diffusion.grids import Trailing, Uniform
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

PATHS = [RectifiedFlow(), CosineVP(), KarrasVE(), LinearDDPM(), ScaledLinearDDPM(zero_terminal_snr=True)]
PATH_NAMES = [type(path).__name__ for path in PATHS]
SHAPE = (2, 3, 4, 4)


def no_noise(step: int) -> Tensor:
    raise AssertionError("a deterministic sampler must not ask for noise")


def start(dtype=torch.float64) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=dtype)


def noise_at(step: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(100 + step), dtype=torch.float64)


def solved(sampler, path, data, x, times, noise=no_noise):
    return sampler(lambda x, t: data.denoise(path, x, t), path, x, times, noise)


# Order on [t_min, t_max]

ORDERS = {
    "DDIM()": (DDIM(), 1),
    "Euler()": (Euler(), 1),
    "PLMS()": (PLMS(), 2),
    "Heun()": (Heun(), 2),
    "DPMSolverPP2M()": (DPMSolverPP2M(), 2),
    "DPMSolverPP2M(lower_order_final=False)": (DPMSolverPP2M(lower_order_final=False), 2),
    "DPMSolverPP2MSDE(eta=0)": (DPMSolverPP2MSDE(eta=0), 2),
    "UniPC(order=1)": (UniPC(order=1), 2),
    "UniPC(order=2)": (UniPC(order=2), 2),
    "UniPC(order=2, lower_order_final=False)": (UniPC(order=2, lower_order_final=False), 3),
    "UniPC(order=2, variant=bh1, lower_order_final=False)": (UniPC(variant="bh1", lower_order_final=False), 3),
    "UniPC(order=3, lower_order_final=False)": (UniPC(order=3, lower_order_final=False), 3),
}


def test_orders_are_the_published_ones():
    section = (Path(__file__).parents[2] / "docs" / "math.md").read_text().split("\n## Sampling\n")[1].split("\n## ")[0]
    published = dict(re.findall(r"^\| `([^`|]+)` \| (\d) \|$", section, flags=re.MULTILINE))
    assert published == {name: str(order) for name, (_, order) in ORDERS.items()}


@pytest.mark.parametrize(
    ("law", "path"),
    [("gaussian", PATHS[0]), ("gaussian", PATHS[3]), *(("two_modes", path) for path in PATHS[:4])],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("name", ORDERS)
def test_converges_to_the_probability_flow_with_its_order(path, name, law, request):
    """On [0.1, 0.9], in steps even in t, at 160 and 320 of them."""
    data, (sampler, order) = request.getfixturevalue(law), ORDERS[name]
    times = {n: torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64) for n in (160, 320)}
    alpha, sigma = path.alpha_sigma(times[160][0])
    x = (alpha**2 + sigma**2).sqrt() * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    exact = data.flow(path, x, times[160][0], times[160][-1])
    coarse, fine = ((solved(sampler, path, data, x, times[n]) - exact).abs().max().item() for n in (160, 320))
    assert fine < {1: 2e-2, 2: 3e-4, 3: 1e-5}[order]
    assert math.log2(coarse / fine) > order - 0.25
    assert order > 1 or math.log2(coarse / fine) < 1.25


@pytest.mark.parametrize("path", PATHS, ids=PATH_NAMES)
@pytest.mark.parametrize("name", ORDERS)
def test_converges_from_pure_noise_to_the_data(path, name, two_modes):
    x = math.sqrt(sum(c.item() ** 2 for c in path.alpha_sigma(torch.ones(1))))
    x = x * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    ends = torch.tensor([1.0, 0.0], dtype=torch.float64)
    exact = two_modes.flow(path, x, *ends)
    coarse, fine = (
        (solved(ORDERS[name][0], path, two_modes, x, Uniform()(path, n).double()) - exact).abs().max().item()
        for n in (150, 300)
    )
    assert fine < 0.06
    assert fine < max(0.65 * coarse, 1e-3)


def test_velocity_of_three_t_squared_moves_x_by_one():
    """u(x, t) = 3 t^2 moves x by -1 from t = 1 to 0; x0_hat = x - t u."""
    x = start()
    times = Uniform()(RectifiedFlow(), 2000).double()
    got = Euler()(lambda x, t: x - (3 * t**3).view(-1, 1, 1, 1), RectifiedFlow(), x, times, no_noise)
    torch.testing.assert_close(got, x - 1, atol=1e-3, rtol=0)


# Stochastic samplers

STOCHASTIC = {
    "DDPM": DDPM(),
    "DDPM large": DDPM(variance="fixed_large"),
    "DDIM": DDIM(eta=1.0),
    "EulerAncestral": EulerAncestral(),
    "DPMSolverPP2MSDE": DPMSolverPP2MSDE(),
    "Heun": Heun(s_churn=20, s_tmin=0.05, s_tmax=50),
}


def law_of(sampler, path, data, times) -> tuple[float, float]:
    """Exact mean and standard deviation of what comes out for Gaussian data.

    Every step is affine in the state and its noise: rows probe the offset, the start's share and each step's noise.
    """
    steps = len(times) - 1
    probes = torch.eye(steps + 1, dtype=torch.float64)
    rows = torch.cat([torch.zeros(1, steps + 1, dtype=torch.float64), probes])
    alpha, sigma = path.alpha_sigma(times[0])
    width = ((alpha * data.std) ** 2 + sigma**2).sqrt()
    x = alpha * data.mean + width * rows[:, -1:]
    got = solved(sampler, path, data, x, times, lambda i: rows[:, i : i + 1]).flatten()
    return got[0].item(), (got[1:] - got[0]).norm().item()


@pytest.mark.parametrize("path", PATHS, ids=PATH_NAMES)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_mean_and_variance_converge_to_those_of_the_data(path, name, gaussian):
    errors = []
    for steps in (100, 200):
        mean, std = law_of(STOCHASTIC[name], path, gaussian, Uniform()(path, steps).double())
        errors.append(abs(mean - gaussian.mean) + abs(std - gaussian.std))
    assert errors[1] < 0.03
    assert errors[1] < 0.65 * errors[0]


@pytest.mark.parametrize("path", [RectifiedFlow(), KarrasVE(), LinearDDPM()], ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_moments_of_a_mixture_are_met_within_monte_carlo_error(path, name, two_modes):
    count, steps = 4000, 150
    alpha, sigma = path.alpha_sigma(torch.ones(()))
    generator = torch.Generator().manual_seed(0)
    modes = torch.randint(0, 2, (count, 1), generator=generator) * 2 - 1
    data = two_modes.shift + two_modes.spread * modes + two_modes.std * torch.randn(count, 1, generator=generator)
    x = alpha * data + sigma * torch.randn(count, 1, generator=generator)

    def noise(step: int) -> Tensor:
        return torch.randn(count, 1, generator=torch.Generator().manual_seed(step + 1))

    got = solved(STOCHASTIC[name], path, two_modes, x, Uniform()(path, steps), noise).double()
    squares = (got - two_modes.mean) ** 2
    assert abs(got.mean().item() - two_modes.mean) < 4 * (two_modes.variance / count) ** 0.5
    assert abs(squares.mean().item() - two_modes.variance) < 4 * squares.std().item() / count**0.5 + 0.02


@pytest.mark.parametrize("path", PATHS, ids=PATH_NAMES)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_large_variance_is_exact_for_white_data(path, steps, gaussian):
    """DDPM section 3.2: mean and variance are right after any number of steps that end above sigma = 0."""
    white = type(gaussian)(mean=0.0, std=1.0)
    times = torch.linspace(1.0, 0.3, steps + 1, dtype=torch.float64)
    mean, std = law_of(DDPM(variance="fixed_large"), path, white, times)
    alpha, sigma = path.alpha_sigma(times[-1])
    assert (mean, std) == (pytest.approx(0, abs=1e-12), pytest.approx((alpha**2 + sigma**2).sqrt().item(), rel=1e-9))


@pytest.mark.parametrize("path", PATHS, ids=PATH_NAMES)
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("sampler", [DDPM(), EulerAncestral(), DDIM(eta=0.5), DPMSolverPP2MSDE()])
def test_the_small_variance_is_exact_for_a_point(sampler, path, steps, gaussian):
    point = type(gaussian)(mean=0.7, std=0.0)
    times = torch.linspace(1.0, 0.3, steps + 1, dtype=torch.float64)
    mean, std = law_of(sampler, path, point, times)
    alpha, sigma = path.alpha_sigma(times[-1])
    assert (mean, std) == (pytest.approx(0.7 * alpha.item(), rel=1e-9), pytest.approx(sigma.item(), rel=1e-9))


# What is what

SAME = {
    "Euler is DDIM": (Euler(), DDIM()),
    "DDPM is DDIM of eta 1": (DDPM(), DDIM(eta=1.0)),
    "Euler ancestral is DDPM": (EulerAncestral(), DDPM()),
    "Euler ancestral is DDIM": (EulerAncestral(eta=0.4), DDIM(eta=0.4)),
    "SDE without noise is 2M": (DPMSolverPP2MSDE(eta=0), DPMSolverPP2M()),
}


@pytest.mark.parametrize("path", PATHS, ids=PATH_NAMES)
@pytest.mark.parametrize("pair", SAME)
def test_equal_samplers(path, pair, two_modes):
    times = Uniform()(path, 7).double()
    results = [solved(sampler, path, two_modes, start(), times, noise_at) for sampler in SAME[pair]]
    torch.testing.assert_close(*results, atol=1e-11, rtol=1e-11)


def test_euler_ancestral_scales_its_noise(two_modes):
    path, times = ScaledLinearDDPM(), torch.tensor([1.0, 0.5], dtype=torch.float64)
    plain, louder = (
        solved(EulerAncestral(s_noise=factor), path, two_modes, start(), times, noise_at) for factor in (1.0, 1.5)
    )
    silent = solved(EulerAncestral(), path, two_modes, start(), times, lambda i: 0 * noise_at(i))
    torch.testing.assert_close(louder - silent, 1.5 * (plain - silent))


def test_heun_with_churn_is_edm_s_algorithm_2(two_modes):
    """Written out in EDM's own terms: sigma is the time, alpha = 1."""
    path, steps, churn, low, high, louder = KarrasVE(), 12, 6.0, 0.05, 50.0, 1.003
    times = Uniform()(path, steps).double()

    def denoise(x, sigma):
        return two_modes.denoise(path, x, path.time_at(-2 * torch.log(sigma))[None])

    x = 80 * start()
    levels = path.alpha_sigma(times)[1]
    for i in range(steps):
        gamma = min(churn / steps, 2**0.5 - 1) if low <= levels[i] <= high else 0.0
        raised = levels[i] * (1 + gamma)
        hat = x + (raised**2 - levels[i] ** 2).sqrt() * louder * noise_at(i)
        slope = (hat - denoise(hat, raised)) / raised
        x = hat + (levels[i + 1] - raised) * slope
        if levels[i + 1] > 0:
            slope_next = (x - denoise(x, levels[i + 1])) / levels[i + 1]
            x = hat + (levels[i + 1] - raised) * (slope + slope_next) / 2
    sampler = Heun(s_churn=churn, s_tmin=low, s_tmax=high, s_noise=louder)
    got = solved(sampler, path, two_modes, 80 * start(), times, noise_at)
    torch.testing.assert_close(got, x, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("path", PATHS, ids=PATH_NAMES)
def test_churn_stays_within_the_path(path, two_modes):
    """The first step starts at the noisiest level there is, and no time is above 1."""
    seen = []

    def denoise(x, t):
        seen.append(t[0].item())
        return two_modes.denoise(path, x, t)

    times = Uniform()(path, 5).double()
    assert torch.isfinite(Heun(s_churn=5)(denoise, path, start(), times, noise_at)).all()
    assert seen[0] == 1.0
    assert max(seen) <= 1
    assert any(t not in times for t in seen)
    seen.clear()
    below = 0.9 * times
    Heun(s_churn=5)(denoise, path, start(), below, noise_at)
    assert max(seen) <= 0.9 + 1e-6


@pytest.mark.parametrize(
    ("sampler", "calls"), [(DDIM(), 6), (PLMS(), 7), (Heun(), 11), (UniPC(), 6), (DPMSolverPP2MSDE(), 6)]
)
def test_network_calls(sampler, calls, two_modes):
    path, seen = ScaledLinearDDPM(), []

    def denoise(x, t):
        seen.append(t)
        return two_modes.denoise(path, x, t)

    sampler(denoise, path, start(), Trailing()(path, 6), noise_at)
    assert len(seen) == calls


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_does_not_correct_a_replaced_state(variant, two_modes):
    """The corrector mends the step that led to a state; a state from elsewhere had no such step."""
    path, seen = RectifiedFlow(), []

    def on_step(i, t_next, x, x0_hat):
        seen.append(x)
        return torch.full_like(x, 0.3)

    times, sampler = Uniform()(path, 6).double(), UniPC(order=1, variant=variant)
    sampler(lambda x, t: two_modes.denoise(path, x, t), path, start(), times, no_noise, on_step)
    for i in range(1, 6):
        step = solved(Euler(), path, two_modes, torch.full(SHAPE, 0.3, dtype=torch.float64), times[i : i + 2])
        torch.testing.assert_close(seen[i], step)


# Refusals


@pytest.mark.parametrize(
    "build",
    [
        lambda: DDIM(eta=1.5),
        lambda: DDIM(eta=-0.1),
        lambda: DDPM(variance="learned"),
        lambda: EulerAncestral(eta=-1),
        lambda: EulerAncestral(s_noise=0),
        lambda: EulerAncestral(eta=math.inf),
        lambda: DPMSolverPP2MSDE(eta=-1),
        lambda: Heun(s_churn=-1),
        lambda: Heun(s_tmin=2, s_tmax=1),
        lambda: UniPC(order=0),
        lambda: UniPC(variant="bh3"),
    ],
)
def test_refuses_settings_that_mean_nothing(build):
    with pytest.raises(InputError, match="got"):
        build()


@pytest.mark.parametrize("times", [[0.5], [], [0.5, 0.5, 0.0], [0.0, 1.0], [1.1, 0.0], [0.5, -0.1], [math.nan, 0.0]])
def test_refuses_times_that_do_not_fall(times):
    with pytest.raises(ValueError, match="fall strictly"):
        Euler()(lambda x, t: x, RectifiedFlow(), start(), torch.tensor(times), no_noise)


def test_refuses_steps_that_the_path_cannot_tell_apart():
    times = torch.tensor([0.9, 0.9 - 1e-7, 0.0])
    with pytest.raises(InputError, match="2 steps are too many for ScaledLinearDDPM"):
        DPMSolverPP2M()(lambda x, t: x, ScaledLinearDDPM(), start(), times, no_noise)

from __future__ import annotations

import math

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.grids import Leading, Shifted, Trailing, Uniform
from latentdiff.diffusion.noise import seeded_noise
from latentdiff.diffusion.path import RectifiedFlow, ScaledLinearDDPM
from latentdiff.diffusion.samplers.ddim import DDIM
from latentdiff.diffusion.samplers.dpmpp_2m import DPMSolverPP2M
from latentdiff.diffusion.samplers.euler import Euler

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (2, 3, 4, 4)


def no_noise(step: int) -> torch.Tensor:
    raise AssertionError("a deterministic sampler must not ask for noise")


def start(dtype=torch.float32) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=dtype)


def fake_epsilon(x: torch.Tensor, index: float) -> torch.Tensor:
    """A network that is neither linear nor a posterior mean."""
    return torch.tanh(x) + 0.3 * torch.sin(x + index / 300)


def ddpm_denoise(x, t):
    path = ScaledLinearDDPM()
    alpha, sigma = (c[0] for c in path.alpha_sigma(t))
    return (x - sigma * fake_epsilon(x, float(path.network_time(t)[0]))) / alpha


# Known solutions


def _error(sampler, path, gaussian, times):
    x = start(torch.float64)
    got = sampler(lambda x, t: gaussian.denoise(path, x, t), path, x, times, no_noise)
    return (got - gaussian.flow(path, x, times[0], times[-1])).abs().max().item()


@pytest.mark.parametrize("path", [RectifiedFlow(), ScaledLinearDDPM()])
@pytest.mark.parametrize(
    ("sampler", "order"), [(DDIM(), 1), (Euler(), 1), (DPMSolverPP2M(), 2), (DPMSolverPP2M(lower_order_final=False), 2)]
)
def test_converges_to_the_probability_flow_with_its_order(path, sampler, order, gaussian):
    coarse, fine = (
        _error(sampler, path, gaussian, torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64)) for n in (320, 640)
    )
    assert fine < (5e-3 if order == 1 else 2e-5)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("path", [RectifiedFlow(), ScaledLinearDDPM()])
@pytest.mark.parametrize("sampler", [DDIM(), Euler(), DPMSolverPP2M(), DPMSolverPP2M(lower_order_final=False)])
def test_converges_from_pure_noise_to_the_data(path, sampler, gaussian):
    coarse, fine = (_error(sampler, path, gaussian, Uniform()(path, n).double()) for n in (320, 640))
    assert fine < 0.02
    assert fine < 0.6 * coarse


def test_velocity_of_three_t_squared_moves_x_by_one():
    """u(x, t) = 3 t^2 moves x by -1 from t = 1 to 0; x0_hat = x - t u."""
    x = start(torch.float64)
    times = Uniform()(RectifiedFlow(), 2000).double()
    got = Euler()(lambda x, t: x - (3 * t**3).view(-1, 1, 1, 1), RectifiedFlow(), x, times, no_noise)
    torch.testing.assert_close(got, x - 1, atol=1e-3, rtol=0)


def test_ancestral_ddim_has_the_distribution_of_the_data(gaussian):
    path = ScaledLinearDDPM()
    x = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    got = DDIM(eta=1.0)(
        lambda x, t: gaussian.denoise(path, x, t),
        path,
        x,
        Trailing()(path, 1000),
        lambda i: torch.randn(20_000, 1, generator=torch.Generator().manual_seed(i + 1)),
    )
    assert got.mean().item() == pytest.approx(gaussian.mean, abs=0.02)
    assert got.std().item() == pytest.approx(gaussian.std, rel=0.03)


@pytest.mark.parametrize("path", [RectifiedFlow(), ScaledLinearDDPM()])
def test_euler_is_deterministic_ddim(path, gaussian):
    times = Uniform()(path, 7).double()
    results = [
        s(lambda x, t: gaussian.denoise(path, x, t), path, start(torch.float64), times, no_noise)
        for s in (Euler(), DDIM())
    ]
    torch.testing.assert_close(*results, atol=1e-12, rtol=0)


# Parity with diffusers


def _diffusers(scheduler, x, network, noise_at=None):
    for i, index in enumerate(scheduler.timesteps):
        output = network(scheduler.scale_model_input(x, index), float(index))
        if noise_at is None:
            x = scheduler.step(output, index, x).prev_sample
        else:
            x = scheduler.step(output, index, x, eta=1.0, variance_noise=noise_at(i)).prev_sample
    return x


@pytest.mark.parametrize(
    ("grid", "options"),
    [
        (Leading(steps_offset=1, end_at_data=False), {"steps_offset": 1, "set_alpha_to_one": False}),
        (Leading(steps_offset=0), {"steps_offset": 0, "set_alpha_to_one": True}),
        (Trailing(), {"timestep_spacing": "trailing"}),
    ],
)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_is_that_of_diffusers(grid, options, eta):
    from diffusers import DDIMScheduler

    def noise_at(step: int) -> torch.Tensor:
        return seeded_noise([4, 5], step, SHAPE[1:])

    scheduler = DDIMScheduler(**SD, clip_sample=False, **options)
    scheduler.set_timesteps(20)
    theirs = _diffusers(scheduler, start(), fake_epsilon, noise_at if eta else None)
    path = ScaledLinearDDPM()
    ours = DDIM(eta=eta)(ddpm_denoise, path, start(), grid(path, 20), noise_at)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("grid", "spacing"), [(Leading(steps_offset=1), "leading"), (Trailing(), "trailing")])
def test_euler_is_that_of_diffusers(grid, spacing):
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(**SD, timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(17)
    path = ScaledLinearDDPM()
    times = grid(path, 17)
    alpha = path.alpha_sigma(times)[0][0]
    theirs = _diffusers(scheduler, start() / alpha, fake_epsilon)  # its state is x / alpha
    ours = Euler()(ddpm_denoise, path, start(), times, no_noise)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_on_rectified_flow_is_that_of_diffusers(shift):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - i / 10 for i in range(10)])
    x = start()
    for time in scheduler.timesteps:
        x = scheduler.step(fake_epsilon(x, float(time)), time, x).prev_sample

    def denoise(x, t):
        return x - t.view(-1, 1, 1, 1) * fake_epsilon(x, 1000 * float(t[0]))

    times = Shifted(shift=shift)(RectifiedFlow(), 10)
    torch.testing.assert_close(Euler()(denoise, RectifiedFlow(), start(), times, no_noise), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 10, 20])
def test_dpm_solver_is_that_of_diffusers(steps):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(**SD, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    path = ScaledLinearDDPM()
    theirs = _diffusers(scheduler, start(), fake_epsilon)
    ours = DPMSolverPP2M()(ddpm_denoise, path, start(), Trailing()(path, steps), no_noise)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)


def test_dpm_solver_without_lower_order_is_that_of_diffusers_down_to_sigma_min():
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(**SD, final_sigmas_type="sigma_min", lower_order_final=False)
    index = list(range(950, 0, -50))
    scheduler.set_timesteps(timesteps=index)
    path = ScaledLinearDDPM()
    times = (torch.tensor([*index, 0]) + 1) / 1000
    theirs = _diffusers(scheduler, start(), fake_epsilon)
    ours = DPMSolverPP2M(lower_order_final=False)(ddpm_denoise, path, start(), times, no_noise)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)


def test_ddim_refuses_more_noise_than_the_posterior_has():
    with pytest.raises(InputError, match="eta"):
        DDIM(eta=1.5)

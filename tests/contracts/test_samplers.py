"""What every class with ``__call__`` in a module of ``latentdiff.diffusion.samplers`` must do."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest
import torch

from latentdiff.diffusion import samplers
from latentdiff.diffusion.path import RectifiedFlow, ScaledLinearDDPM

MEAN, STD = 0.7, 0.4
PATHS = [RectifiedFlow(), ScaledLinearDDPM()]


def _samplers() -> list[type]:
    modules = [
        importlib.import_module(f"{samplers.__name__}.{m.name}") for m in pkgutil.iter_modules(samplers.__path__)
    ]
    return [
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__ and "__call__" in vars(value)
    ]


SAMPLERS = _samplers()


def gaussian_denoise(path):
    """The posterior mean of data N(MEAN, STD^2)."""

    def denoise(x, t):
        alpha, sigma = (c.view(-1, *[1] * (x.ndim - 1)) for c in path.alpha_sigma(t))
        return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)

    return denoise


def noise_at(step: int) -> torch.Tensor:
    return torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(step))


def start() -> torch.Tensor:
    return torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(99))


def times(steps: int, first: float = 1.0) -> torch.Tensor:
    return torch.linspace(first, 0, steps + 1)


def test_finds_the_samplers():
    assert {"DDIM", "Euler", "DPMSolverPP2M"} <= {s.__name__ for s in SAMPLERS}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sampler", SAMPLERS)
class TestSampler:
    def test_converges_to_the_probability_flow(self, sampler, path):
        x, errors = start().double(), []
        for steps in (200, 400):
            got = sampler()(gaussian_denoise(path), path, x, times(steps).double(), noise_at)
            alpha, sigma = path.alpha_sigma(torch.ones((), dtype=torch.float64))
            exact = MEAN + STD * (x - alpha * MEAN) / ((alpha * STD) ** 2 + sigma**2).sqrt()
            errors.append((got - exact).abs().max().item())
        assert errors[1] < 0.03
        assert errors[1] < 0.6 * errors[0]

    def test_a_perfect_denoiser_gives_the_data_in_any_number_of_steps(self, sampler, path):
        data = start().flip(0)
        for steps in (1, 2, 3):
            got = sampler()(lambda x, t: data, path, start(), times(steps), noise_at)
            torch.testing.assert_close(got, data, atol=1e-5, rtol=0)

    def test_keeps_no_state(self, sampler, path):
        one = sampler()
        runs = [one(gaussian_denoise(path), path, start(), times(5), noise_at) for _ in range(2)]
        assert torch.equal(*runs)

    def test_a_sample_does_not_depend_on_its_batch(self, sampler, path):
        whole = sampler()(gaussian_denoise(path), path, start(), times(5), noise_at)
        alone = sampler()(gaussian_denoise(path), path, start()[1:2], times(5), lambda i: noise_at(i)[1:2])
        torch.testing.assert_close(whole[1:2], alone, atol=1e-6, rtol=0)

    def test_state_is_float32_and_the_input_is_left_alone(self, sampler, path):
        x = start().bfloat16()
        kept, seen = x.clone(), []

        def denoise(x, t):
            seen.append((x.dtype, tuple(t.shape)))
            return gaussian_denoise(path)(x, t)

        got = sampler()(denoise, path, x, times(3), noise_at)
        assert got.dtype == torch.float32
        assert set(seen) == {(torch.float32, (4,))}
        assert torch.equal(x, kept)

    def test_on_step_sees_every_step_and_may_replace_the_state(self, sampler, path):
        seen = []

        def on_step(i, t_next, x, x0_hat):
            seen.append((i, t_next.item()))
            return torch.full_like(x, 7.0) if i == 3 else None

        got = sampler()(gaussian_denoise(path), path, start(), times(4), noise_at, on_step)
        assert [i for i, _ in seen] == [0, 1, 2, 3]
        assert [t for _, t in seen] == times(4)[1:].tolist()
        assert bool((got == 7).all())

    def test_a_replaced_state_is_the_one_that_is_denoised_next(self, sampler, path):
        seen = []

        def denoise(x, t):
            seen.append(x.mean().item())
            return x

        sampler()(denoise, path, start(), times(2), noise_at, lambda i, t, x, x0_hat: torch.full_like(x, 7.0))
        assert seen[1] == 7

    def test_may_start_between_noise_and_data(self, sampler, path):
        data = start().flip(0)
        x = path.mix(data, start(), torch.full((4,), 0.5))
        got = sampler()(lambda x, t: data, path, x, times(3, first=0.5), noise_at)
        torch.testing.assert_close(got, data, atol=1e-5, rtol=0)

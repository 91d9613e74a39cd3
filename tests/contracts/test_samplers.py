"""What every sampler must do: each class of ``latentdiff.diffusion.samplers`` with ``__call__``, each YAML of configs/.

Both are found by themselves. A sampler that asks for noise is held to the law of the data, one that does not to the
probability flow.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.diffusion import samplers
from latentdiff.diffusion.path import CosineVP, KarrasVE, LinearDDPM, RectifiedFlow, ScaledLinearDDPM
from latentdiff.diffusion.trajectory import Trajectory

MEAN, STD = 0.7, 0.4
PATHS = [RectifiedFlow(), CosineVP(), KarrasVE(), LinearDDPM(), ScaledLinearDDPM(zero_terminal_snr=True)]
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "sampler"
YAMLS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "checkpoint")


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
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)


def gaussian_denoise(path):
    """The posterior mean of data N(MEAN, STD^2)."""

    def denoise(x, t):
        alpha, sigma = (c.view(-1, *[1] * (x.ndim - 1)) for c in path.alpha_sigma(t))
        return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)

    return denoise


def gaussian_error(solver, path, times) -> float:
    """How far the outcome for data N(MEAN, STD^2) is from the probability flow, or from their mean and deviation.

    Every step is affine in the state and in its noise: rows probe the offset, the start's share, each step's noise.
    """
    steps, asked = len(times) - 1, []
    rows = torch.cat([torch.zeros(1, steps + 1), torch.eye(steps + 1)]).double()

    def noise(i: int) -> Tensor:
        asked.append(i)
        return rows[:, i : i + 1]

    alpha, sigma = path.alpha_sigma(times[0])
    x = alpha * MEAN + ((alpha * STD) ** 2 + sigma**2).sqrt() * rows[:, -1:]
    got = solver(gaussian_denoise(path), path, x, times, noise).flatten()
    alpha, sigma = path.alpha_sigma(times[-1])
    std = ((alpha * STD) ** 2 + sigma**2).sqrt().item()
    share = (got[1:] - got[0]).norm() if asked else got[-1] - got[0]
    return abs(got[0].item() - alpha.item() * MEAN) + abs(share.item() - std)


def noise_at(step: int) -> Tensor:
    return torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(step))


def start() -> Tensor:
    return torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(99))


def times(steps: int, first: float = 1.0) -> Tensor:
    return torch.linspace(first, 0, steps + 1)


class NoReading(TorchDispatchMode):
    """Raises where a tensor's value is asked for, once a sampler's loop has begun."""

    armed = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.armed and func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def test_finds_the_samplers():
    expected = "DDIM DDPM DPMSolverPP2M DPMSolverPP2MSDE Euler EulerAncestral Heun PLMS UniPC"
    assert set(expected.split()) <= {s.__name__ for s in SAMPLERS}


@each_path
@pytest.mark.parametrize("sampler", SAMPLERS)
class TestSampler:
    def test_converges(self, sampler, path):
        errors = [gaussian_error(sampler(), path, times(steps).double()) for steps in (100, 200)]
        assert errors[1] < 0.03
        assert errors[1] < max(0.65 * errors[0], 1e-4)

    def test_a_perfect_denoiser_gives_the_data_in_any_number_of_steps(self, sampler, path):
        data = start().flip(0)
        for steps in (1, 2, 3, 6):
            got = sampler()(lambda x, t: data, path, start(), times(steps), noise_at)
            torch.testing.assert_close(got, data, atol=2e-5, rtol=0)

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
            seen.append((x.dtype, t.dtype, tuple(t.shape)))
            return gaussian_denoise(path)(x, t)

        got = sampler()(denoise, path, x, times(3), noise_at)
        assert got.dtype == torch.float32
        assert set(seen) == {(torch.float32, torch.float32, (4,))}
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
        events = []

        def denoise(x, t):
            events.append(x.mean().item())
            return x

        def on_step(i, t_next, x, x0_hat):
            events.append("replaced")
            return torch.full_like(x, 7.0)

        sampler()(denoise, path, start(), times(3), noise_at, on_step)
        for place in [k for k, event in enumerate(events[:-1]) if event == "replaced"]:
            assert events[place + 1] == 7

    def test_may_start_between_noise_and_data(self, sampler, path):
        data = start().flip(0)
        x = path.mix(data, start(), torch.full((4,), 0.5))
        got = sampler()(lambda x, t: data, path, x, times(3, first=0.5), noise_at)
        torch.testing.assert_close(got, data, atol=1e-5, rtol=0)

    def test_waits_for_no_device_in_the_loop(self, sampler, path):
        """Nor with a trajectory. On the meta device a state has no values that could be read at all."""
        with NoReading() as mode:

            def denoise(x, t):
                mode.armed = True
                return 0.5 * x

            sampler()(denoise, path, start(), times(5), noise_at, Trajectory())
        state = start().to("meta")
        got = sampler()(lambda x, t: x * t.view(-1, 1, 1, 1), path, state, times(5), noise_at, Trajectory())
        assert got.device.type == "meta"


@each_path
@pytest.mark.parametrize("name", YAMLS)
def test_yaml_samples_or_refuses_the_path_before_any_work(name, path):
    text = (CONFIGS / f"{name}.yaml").read_text()
    node = OmegaConf.create(text)
    solver, grid = build(node.solver), build(node.grid)
    if path.steps is None and "discrete paths alone" in text.splitlines()[0]:
        with pytest.raises(InputError, match="has no table"):
            grid(path, node.steps, 1.0)
        return
    with pytest.raises(InputError, match="got 0"):
        grid(path, 0, 1.0)
    bound = 0.06 if isinstance(path, RectifiedFlow) else 0.12  # the defaults are chosen for it
    assert gaussian_error(solver, path, grid(path, node.steps, 1.0)) < bound
    assert gaussian_error(solver, path, grid(path, node.steps, 0.6)) < bound

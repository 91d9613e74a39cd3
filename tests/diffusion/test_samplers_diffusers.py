"""Every sampler against diffusers' scheduler of the same name, in float64, over 20 steps with the same noise.

diffusers computes its tables in float32 and casts states to float32 in some ``step`` methods. Here its scheduler's
module sees float64 under the name ``float32`` (of torch and of numpy), so both sides run the same sums in double.
"""

from __future__ import annotations

import sys

import diffusers
import pytest
import torch

from latentdiff.diffusion.grids import Karras, Leading, Linspace, Shifted, Trailing
from latentdiff.diffusion.noise import seeded_noise
from latentdiff.diffusion.path import LinearDDPM, RectifiedFlow, ScaledLinearDDPM
from latentdiff.diffusion.samplers.ddim import DDIM
from latentdiff.diffusion.samplers.ddpm import DDPM
from latentdiff.diffusion.samplers.dpmpp_2m import DPMSolverPP2M
from latentdiff.diffusion.samplers.dpmpp_2m_sde import DPMSolverPP2MSDE
from latentdiff.diffusion.samplers.euler import Euler
from latentdiff.diffusion.samplers.euler_ancestral import EulerAncestral
from latentdiff.diffusion.samplers.heun import Heun
from latentdiff.diffusion.samplers.plms import PLMS
from latentdiff.diffusion.samplers.unipc import UniPC

SHAPE = (2, 3, 4, 4)
PATH = ScaledLinearDDPM()
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCALED = ("Euler", "EulerAncestral", "Heun")
"""Their state is x / alpha."""


class Double:
    """A module in which float32 means float64."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name: str):
        return getattr(self.module, "float64" if name == "float32" else name)


@pytest.fixture
def scheduler(monkeypatch):
    """name, settings -> diffusers' scheduler in double, drawing its k-th noise from ``noise_at(k)``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)

    def build(name: str, **settings):
        cls = getattr(diffusers, f"{name}Scheduler")
        module = sys.modules[cls.__module__]
        for library in ("torch", "np"):
            monkeypatch.setattr(module, library, Double(getattr(module, library)))
        draws = iter(range(1000))
        if hasattr(module, "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise_at(next(draws)))
        return cls(**settings)

    yield build
    torch.set_default_dtype(before)


def noise_at(step: int) -> torch.Tensor:
    return seeded_noise([4, 5], step, SHAPE[1:]).double()


def start() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def network(x: torch.Tensor, index: float) -> torch.Tensor:
    """Neither linear nor a posterior mean."""
    return torch.tanh(x) + 0.3 * torch.sin(x + index / 300)


def denoise_on(path):
    def denoise(x, t):
        alpha, sigma = (c[0] for c in path.alpha_sigma(t))
        return (x - sigma * network(x, float(path.network_time(t)[0]))) / alpha

    return denoise


def theirs(scheduler, x, function=network, **step_options):
    for k, index in enumerate(scheduler.timesteps):
        output = function(scheduler.scale_model_input(x, index), float(index))
        options = {"variance_noise": noise_at(k)} if "variance_noise" in step_options else {}
        x = scheduler.step(output, index, x, **{**step_options, **options}).prev_sample
    assert x.dtype == torch.float64
    return x


def exact(times: torch.Tensor, entries: int = 1000) -> torch.Tensor:
    """Times of whole table entries in float64."""
    return (times.double() * entries).round() / entries


def by_index(spacing: str, offset: int = 0, to_data: bool = True) -> dict:
    """Settings of the schedulers that step by 1000 // steps: DDIM and PNDM."""
    return {"timestep_spacing": spacing, "steps_offset": offset, "set_alpha_to_one": to_data}


def spaced(spacing: str, offset: int = 0) -> dict:
    return {"timestep_spacing": spacing, "steps_offset": offset}


BY_INDEX = [
    (Leading(steps_offset=1, end_at_data=False), by_index("leading", 1, False), 20),
    (Leading(steps_offset=0), by_index("leading"), 20),
    (Trailing(), by_index("trailing"), 20),
]
SINGLE_STEP = [
    (Leading(steps_offset=1), spaced("leading", 1), 20),
    (Trailing(), spaced("trailing"), 20),
    (Linspace(), spaced("linspace"), 28),  # 27 divides 999: whole entries
]
MULTISTEP = [
    (Leading(steps_offset=1, skip_lowest=True), spaced("leading", 1), 20),
    (Trailing(), spaced("trailing"), 20),
    (Linspace(skip_lowest=True), spaced("linspace"), 20),
]
TO_ENTRY_0 = {"final_sigmas_type": "sigma_min", "lower_order_final": False}

# sampler, scheduler, its settings, grids with the settings that name them, options of its step
TABLE = [
    (DDIM(), "DDIM", {"clip_sample": False}, BY_INDEX, {}),
    (DDIM(eta=1.0), "DDIM", {"clip_sample": False}, BY_INDEX, {"eta": 1.0, "variance_noise": True}),
    (DDPM(), "DDPM", {"clip_sample": False}, [*SINGLE_STEP[:2], (Linspace(), spaced("linspace"), 20)], {}),
    (
        DDPM(variance="fixed_large"),
        "DDPM",
        {"clip_sample": False, "variance_type": "fixed_large"},
        [(Leading(steps_offset=0), spaced("leading"), 20), (Linspace(), spaced("linspace"), 20)],
        {},
    ),
    (PLMS(), "PNDM", {"skip_prk_steps": True}, BY_INDEX, {}),
    (Euler(), "EulerDiscrete", {}, SINGLE_STEP, {}),
    (EulerAncestral(), "EulerAncestralDiscrete", {}, SINGLE_STEP, {}),
    (Heun(), "HeunDiscrete", {}, SINGLE_STEP, {}),
    (DPMSolverPP2M(), "DPMSolverMultistep", {}, MULTISTEP, {}),
    (DPMSolverPP2M(lower_order_final=False), "DPMSolverMultistep", TO_ENTRY_0, MULTISTEP, {}),
    (
        DPMSolverPP2MSDE(),
        "DPMSolverMultistep",
        {"algorithm_type": "sde-dpmsolver++"},
        MULTISTEP,
        {"variance_noise": True},
    ),
    *((UniPC(order=order), "UniPCMultistep", {"solver_order": order}, MULTISTEP, {}) for order in (1, 2, 3)),
    *(
        (
            UniPC(order=order, variant=variant, lower_order_final=False),
            "UniPCMultistep",
            {"solver_order": order, "solver_type": variant, **TO_ENTRY_0},
            MULTISTEP,
            {},
        )
        for order in (1, 2, 3)
        for variant in ("bh1", "bh2")  # diffusers' bh1 is not a number where sigma ends at 0
    ),
]
CASES = [
    pytest.param(
        sampler,
        name,
        {**settings, **spacing},
        grid,
        step_options,
        steps,
        id=f"{name}-{spacing['timestep_spacing']}-{k}",
    )
    for k, (sampler, name, settings, grids, step_options) in enumerate(TABLE)
    for grid, spacing, steps in grids
]


@pytest.mark.parametrize(("sampler", "name", "settings", "grid", "step_options", "steps"), CASES)
def test_equals_diffusers(sampler, name, settings, grid, step_options, steps, scheduler):
    peer = scheduler(name, **SD, **settings)
    peer.set_timesteps(steps)
    times = exact(grid(PATH, steps))
    assert PATH.network_time(times[:-1]).tolist() == sorted(set(peer.timesteps.tolist()), reverse=True)
    if settings.get("final_sigmas_type") == "sigma_min":
        times[-1] = 1 / 1000
    x = start()
    scaled = name.removesuffix("Discrete") in SCALED
    expected = theirs(peer, x / PATH.alpha_sigma(times)[0][0] if scaled else x, **step_options)
    ours = sampler(denoise_on(PATH), PATH, x, times, noise_at)
    assert (ours - expected).abs().max().item() <= 1e-6


def test_ddpm_of_large_variance_adds_no_noise_to_the_data(scheduler):
    """diffusers does wherever the last index is above 0; the difference is that noise alone."""
    peer = scheduler("DDPM", **SD, clip_sample=False, variance_type="fixed_large", timestep_spacing="trailing")
    peer.set_timesteps(20)
    times = exact(Trailing()(PATH, 20))
    difference = theirs(peer, start()) - DDPM(variance="fixed_large")(denoise_on(PATH), PATH, start(), times, noise_at)
    torch.testing.assert_close(difference, PATH.alpha_sigma(times)[1][-2] * noise_at(19), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("sampler", "name"), [(Euler(), "EulerDiscrete"), (Heun(), "HeunDiscrete")])
def test_karras_levels_are_those_of_diffusers(sampler, name, scheduler):
    """Also DDPM's own table, of linear betas. Indices between entries: diffusers feeds them to the network as well."""
    path = LinearDDPM()
    peer = scheduler(name, beta_start=1e-4, beta_end=0.02, use_karras_sigmas=True, timestep_spacing="linspace")
    peer.set_timesteps(20)
    levels = torch.cat([peer.sigmas[peer.sigmas > 0].unique().flip(0), torch.zeros(1)])
    times = path.time_at(-2 * torch.log(levels))
    torch.testing.assert_close(Karras()(path, 20).double(), times, atol=2e-7, rtol=0)
    ours = sampler(denoise_on(path), path, start(), times, noise_at)
    expected = theirs(peer, start() / path.alpha_sigma(times)[0][0])
    assert (ours - expected).abs().max().item() <= 1e-6


# Rectified flow


velocity = network


def denoise_flow(x, t):
    return x - t.view(-1, 1, 1, 1) * velocity(x, 1000 * float(t[0]))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("sampler", "stochastic"), [(Euler(), False), (EulerAncestral(eta=1e9), True)])
def test_flow_matching_euler_is_that_of_diffusers(sampler, stochastic, shift, scheduler):
    peer = scheduler("FlowMatchEulerDiscrete", shift=shift, stochastic_sampling=stochastic)
    peer.set_timesteps(sigmas=[1 - i / 20 for i in range(20)])
    expected = start()
    for time in peer.timesteps:
        expected = peer.step(velocity(expected, float(time)), time, expected).prev_sample
    times = Shifted(shift=shift)(RectifiedFlow(), 20).double()
    torch.testing.assert_close(times, peer.sigmas, atol=1e-7, rtol=0)
    ours = sampler(denoise_flow, RectifiedFlow(), start(), peer.sigmas, noise_at)
    assert (ours - expected).abs().max().item() <= 1e-6


@pytest.mark.parametrize(
    ("sampler", "name", "settings"),
    [
        (DPMSolverPP2M(), "DPMSolverMultistep", {}),
        (UniPC(), "UniPCMultistep", {}),
        (UniPC(order=3), "UniPCMultistep", {"solver_order": 3}),
    ],
)
def test_multistep_solvers_on_rectified_flow_are_those_of_diffusers(sampler, name, settings, scheduler):
    """On diffusers' own levels, which start a little below t = 1."""
    peer = scheduler(name, use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, **settings)
    peer.set_timesteps(20)
    expected = start()
    for index, sigma in zip(peer.timesteps, peer.sigmas):  # the indices are cut to whole numbers: not for the network
        expected = peer.step(velocity(expected, 1000 * float(sigma)), index, expected).prev_sample
    ours = sampler(denoise_flow, RectifiedFlow(), start(), peer.sigmas, noise_at)
    assert (ours - expected).abs().max().item() <= 1e-6

from __future__ import annotations

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.grids import Karras, Leading, Linspace, Shifted, Trailing, Uniform, UniformLogSNR
from latentdiff.diffusion.path import CosineVP, KarrasVE, LinearDDPM, RectifiedFlow, ScaledLinearDDPM

DDPM, FLOW = ScaledLinearDDPM(), RectifiedFlow()
PATHS = [DDPM, FLOW, CosineVP(), KarrasVE(), LinearDDPM(zero_terminal_snr=True)]


@pytest.mark.parametrize("steps", [2, 7, 20, 50, 333, 999])
@pytest.mark.parametrize(
    ("grid", "options"),
    [
        (Leading(steps_offset=0), {"timestep_spacing": "leading"}),
        (Leading(steps_offset=1), {"timestep_spacing": "leading", "steps_offset": 1}),
        (Trailing(), {"timestep_spacing": "trailing"}),
        (Linspace(), {"timestep_spacing": "linspace"}),
    ],
)
def test_visits_the_indices_of_diffusers(grid, options, steps):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**options)
    scheduler.set_timesteps(steps)
    times = grid(DDPM, steps)
    assert DDPM.network_time(times[:-1]).tolist() == scheduler.timesteps[:steps].tolist()
    assert times[-1].item() == 0


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "UniPCMultistep"])
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50, 333])
@pytest.mark.parametrize(
    ("grid", "options"),
    [
        (Leading(steps_offset=0, skip_lowest=True), {"timestep_spacing": "leading"}),
        (Leading(steps_offset=1, skip_lowest=True), {"timestep_spacing": "leading", "steps_offset": 1}),
        (Trailing(), {"timestep_spacing": "trailing"}),
        (Linspace(skip_lowest=True), {"timestep_spacing": "linspace"}),
    ],
)
def test_visits_the_indices_of_diffusers_multistep_solvers(name, grid, options, steps):
    import diffusers

    scheduler = getattr(diffusers, f"{name}Scheduler")(**options)
    scheduler.set_timesteps(steps)
    assert DDPM.network_time(grid(DDPM, steps)[:-1]).tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [2, 7, 20, 50])
def test_karras_has_the_levels_of_diffusers(steps):
    """Of the whole table, whose ends its Linspace visits."""
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", use_karras_sigmas=True
    )
    scheduler.set_timesteps(steps)
    times = Karras()(DDPM, steps)
    alpha, sigma = DDPM.alpha_sigma(times)
    torch.testing.assert_close(sigma / alpha, scheduler.sigmas, rtol=2e-4, atol=0)
    torch.testing.assert_close(DDPM.network_time(times[:-1]), scheduler.timesteps, rtol=0, atol=0.01)


@pytest.mark.parametrize("path", PATHS)
def test_karras_is_even_in_the_root_between_its_ends(path):
    times = Karras(sigma_min=0.05, sigma_max=9.0, rho=5.0)(path, 12).double()[1:-1]
    roots = torch.exp(-path.log_snr(times) / 10)
    assert roots[-1].item() == pytest.approx(0.05**0.2, rel=1e-4)
    assert (roots[0] - roots.diff().mean()).item() == pytest.approx(9**0.2, rel=1e-3)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(10), rtol=2e-3, atol=0)


def test_karras_is_edm_s_grid_on_edm_s_path():
    path = KarrasVE()
    step = torch.arange(18, dtype=torch.float64) / 17
    edm = (80 ** (1 / 7) + step * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    got = path.alpha_sigma(Karras()(path, 18).double())[1]
    torch.testing.assert_close(got[:-1], edm, rtol=3e-4, atol=0)
    assert got[-1].item() == 0


def test_karras_ends_at_the_path_s_own_lowest_level():
    path = KarrasVE(sigma_min=0.004, sigma_max=160.0)
    levels = path.alpha_sigma(Karras()(path, 9).double())[1]
    assert levels[0].item() == pytest.approx(160.0)
    assert levels[-2].item() == pytest.approx(0.004, rel=1e-4)


def test_karras_is_cut_to_what_the_path_has():
    assert torch.equal(Karras(sigma_max=1e6)(DDPM, 9), Karras()(DDPM, 9))
    assert Karras(sigma_max=1e6)(DDPM, 9, 0.5)[0].item() == 0.5


def test_leading_may_end_at_the_first_entry():
    times = Leading(steps_offset=1, end_at_data=False)(DDPM, 50)
    assert times[-1].item() == pytest.approx(1 / 1000)
    assert times[-2].item() == pytest.approx(2 / 1000)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("grid", [Uniform(), Shifted(shift=3.0), UniformLogSNR(), Karras(), Karras(sigma_max=8.0)])
@pytest.mark.parametrize("t_max", [1.0, 0.99, 0.4])
@pytest.mark.parametrize("steps", [1, 2, 13])
def test_falls_strictly_from_t_max_to_the_data(path, grid, t_max, steps):
    times = grid(path, steps, t_max)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float32
    assert times[0].item() == pytest.approx(t_max)
    assert times[-1].item() == 0
    assert bool((times.diff() < 0).all())


@pytest.mark.parametrize("grid", [Leading(), Trailing(), Linspace()])
def test_discrete_grids_respect_t_max(grid):
    assert grid(DDPM, 10, 0.5)[0].item() <= 0.5


def test_uniform_and_shifted_have_their_closed_forms():
    torch.testing.assert_close(Uniform()(FLOW, 4), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))
    torch.testing.assert_close(Shifted(shift=3.0)(FLOW, 2), torch.tensor([1.0, 0.75, 0.0]))


@pytest.mark.parametrize("path", PATHS)
def test_uniform_log_snr_is_even_in_log_snr(path):
    steps = path.log_snr(UniformLogSNR()(path, 12).double())[1:-1].diff()
    torch.testing.assert_close(steps, steps[:1].expand(len(steps)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("grid", [Leading(), Trailing(), Linspace()])
def test_discrete_grids_refuse_continuous_paths_and_too_many_steps(grid):
    with pytest.raises(InputError, match="has no table"):
        grid(FLOW, 10)
    with pytest.raises(InputError, match="1 to 1000"):
        grid(DDPM, 1001)
    with pytest.raises(InputError, match="1 to 1000"):
        grid(DDPM, 0)


@pytest.mark.parametrize("grid", [Leading(steps_offset=0, skip_lowest=True), Linspace(skip_lowest=True)])
def test_a_grid_that_skips_an_entry_has_one_step_less(grid):
    assert len(grid(DDPM, 999)) == 1000
    with pytest.raises(InputError, match="1 to 999"):
        grid(DDPM, 1000)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Leading(steps_offset=0, end_at_data=False),
        lambda: Leading(steps_offset=1)(DDPM, 1000),
        lambda: Linspace()(DDPM, 1),
        lambda: Uniform()(FLOW, 0),
        lambda: Shifted(shift=0),
        lambda: UniformLogSNR(t_low=0),
        lambda: Karras()(FLOW, 0),
        lambda: Karras(rho=0.5),
        lambda: Karras(sigma_max=-1.0),
        lambda: Karras(sigma_min=float("inf")),
        lambda: Karras(sigma_min=20.0)(DDPM, 5),
        lambda: Karras(sigma_min=3.0, sigma_max=2.0)(FLOW, 5),
        lambda: Karras(sigma_min=1.0, sigma_max=1.0 + 1e-9)(FLOW, 50),
    ],
)
def test_refuses_what_has_no_grid(build):
    with pytest.raises(InputError):
        build()

from __future__ import annotations

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.grids import Leading, Linspace, Shifted, Trailing, Uniform, UniformLogSNR
from latentdiff.diffusion.path import RectifiedFlow, ScaledLinearDDPM

DDPM, FLOW = ScaledLinearDDPM(), RectifiedFlow()


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


def test_leading_may_end_at_the_first_entry():
    times = Leading(steps_offset=1, end_at_data=False)(DDPM, 50)
    assert times[-1].item() == pytest.approx(1 / 1000)
    assert times[-2].item() == pytest.approx(2 / 1000)


@pytest.mark.parametrize("path", [DDPM, FLOW])
@pytest.mark.parametrize("grid", [Uniform(), Shifted(shift=3.0), UniformLogSNR()])
@pytest.mark.parametrize("t_max", [1.0, 0.99])
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


@pytest.mark.parametrize("path", [DDPM, FLOW])
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


@pytest.mark.parametrize(
    "build",
    [
        lambda: Leading(steps_offset=0, end_at_data=False),
        lambda: Leading(steps_offset=1)(DDPM, 1000),
        lambda: Linspace()(DDPM, 1),
        lambda: Uniform()(FLOW, 0),
        lambda: Shifted(shift=0),
        lambda: UniformLogSNR(t_low=0),
    ],
)
def test_refuses_what_has_no_grid(build):
    with pytest.raises(InputError):
        build()

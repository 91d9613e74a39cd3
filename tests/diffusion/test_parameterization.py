from __future__ import annotations

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.parameterization import Epsilon, Sample, V, Velocity, check_pair
from latentdiff.diffusion.path import RectifiedFlow, ScaledLinearDDPM

TABLE = {  # t_max of each pair, None where it is refused; the table of docs/math.md
    (Epsilon, RectifiedFlow): 0.99,
    (Sample, RectifiedFlow): 1.0,
    (V, RectifiedFlow): 1.0,
    (Velocity, RectifiedFlow): 1.0,
    (Epsilon, ScaledLinearDDPM): 1.0,
    (Sample, ScaledLinearDDPM): 1.0,
    (V, ScaledLinearDDPM): 1.0,
    (Velocity, ScaledLinearDDPM): None,
}
ALLOWED = [pair for pair, t_max in TABLE.items() if t_max is not None]


@pytest.mark.parametrize(("pair", "t_max"), TABLE.items())
def test_the_published_table(pair, t_max):
    parameterization, path = pair[0](), pair[1]()
    if t_max is None:
        with pytest.raises(InputError, match="Velocity on ScaledLinearDDPM"):
            check_pair(path, parameterization)
    else:
        assert check_pair(path, parameterization) == t_max
        assert bool(torch.isfinite(parameterization.x0_gain(path, torch.tensor([0.0, t_max]))).all())


def _case(path, t_max, generator):
    t = torch.linspace(0.0, t_max, 101, dtype=torch.float64)
    x0, noise, error = (torch.randn(101, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    return t, x0, noise, error, path.mix(x0, noise, t)


@pytest.mark.parametrize("pair", ALLOWED)
def test_the_target_means_x0(pair, generator):
    parameterization, path = pair[0](), pair[1]()
    t, x0, noise, _, x_t = _case(path, TABLE[pair], generator)
    back = parameterization.to_x0(parameterization.target(x0, noise, path, t), x_t, path, t)
    torch.testing.assert_close(back, x0, atol=1e-10, rtol=0)


@pytest.mark.parametrize("pair", ALLOWED)
def test_x0_gain_is_the_size_of_the_x0_error(pair, generator):
    parameterization, path = pair[0](), pair[1]()
    t, x0, noise, error, x_t = _case(path, TABLE[pair], generator)
    output = parameterization.target(x0, noise, path, t) + error
    x0_error = (parameterization.to_x0(output, x_t, path, t) - x0).flatten(1).norm(dim=1)
    gain = parameterization.x0_gain(path, t)
    torch.testing.assert_close(x0_error, gain * error.flatten(1).norm(dim=1), atol=1e-10, rtol=1e-10)


def test_velocity_on_rectified_flow_is_noise_minus_data(generator):
    t, x0, noise, _, _ = _case(RectifiedFlow(), 1.0, generator)
    torch.testing.assert_close(Velocity().target(x0, noise, RectifiedFlow(), t), noise - x0)


def test_v_agrees_with_diffusers(generator):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    x0, noise = (torch.randn(4, 2, 3, 3, generator=generator) for _ in range(2))
    index = torch.tensor([0, 10, 500, 999])
    t = (index + 1) / 1000
    ours = V().target(x0, noise, ScaledLinearDDPM(), t)
    torch.testing.assert_close(ours, scheduler.get_velocity(x0, noise, index), atol=1e-5, rtol=1e-5)

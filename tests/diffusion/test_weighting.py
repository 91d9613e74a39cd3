from __future__ import annotations

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.parameterization import Epsilon, Sample, V, Velocity
from latentdiff.diffusion.path import RectifiedFlow, ScaledLinearDDPM
from latentdiff.diffusion.weighting import MinSNR, Unit

T = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)


def test_unit_is_one():
    assert bool((Unit()(ScaledLinearDDPM(), V(), T) == 1).all())


def test_min_snr_has_the_closed_forms_of_its_paper():
    path, weighting = ScaledLinearDDPM(), MinSNR(gamma=5)
    snr = torch.exp(path.log_snr(T))
    capped = snr.clamp(max=5)
    torch.testing.assert_close(weighting(path, Sample(), T), capped)
    torch.testing.assert_close(weighting(path, Epsilon(), T), capped / snr)
    torch.testing.assert_close(weighting(path, V(), T), capped / (snr + 1))


def test_min_snr_of_velocity_is_its_x0_weight_times_t_squared():
    snr = ((1 - T) / T) ** 2
    torch.testing.assert_close(MinSNR()(RectifiedFlow(), Velocity(), T), snr.clamp(max=5) * T**2)


@pytest.mark.parametrize("parameterization", [Epsilon(), Sample(), V(), Velocity()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_min_snr_is_finite_at_both_ends(parameterization, dtype):
    for path in (RectifiedFlow(), ScaledLinearDDPM()):
        weight = MinSNR()(path, parameterization, torch.tensor([0.0, 1.0], dtype=dtype))
        assert bool((torch.isfinite(weight) & (weight >= 0)).all())


def test_min_snr_of_epsilon_is_one_at_pure_noise():
    assert MinSNR()(RectifiedFlow(), Epsilon(), torch.ones(1)).item() == pytest.approx(1, rel=1e-3)


def test_min_snr_refuses_gamma_zero():
    with pytest.raises(InputError, match="gamma"):
        MinSNR(gamma=0)

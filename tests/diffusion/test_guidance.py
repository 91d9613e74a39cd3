from __future__ import annotations

import pytest
import torch
from torch import nn

from latentdiff.config.errors import InputError
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.guidance import ClassifierFree, Interval, Unguided
from latentdiff.diffusion.parameterization import Epsilon, V
from latentdiff.diffusion.path import ScaledLinearDDPM, per_sample
from latentdiff.types import Conditioning, Conditions

T = torch.tensor([0.2, 0.5, 0.9])
X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
CONDITIONS = Conditions(
    cond=Conditioning(vector=torch.tensor([[1.0], [2.0], [3.0]])), null=Conditioning(vector=torch.zeros(3, 1))
)


class Shift(nn.Module):
    """tanh(x) + the condition; counts its calls."""

    def __init__(self):
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x, t, cond):
        self.batches.append(len(x))
        return torch.tanh(x) + cond.vector.view(-1, 1, 1, 1)


@pytest.fixture
def denoiser() -> Denoiser:
    return Denoiser(backbone=Shift(), path=ScaledLinearDDPM(), parameterization=V())


def test_scale_one_is_unguided_and_skips_the_null_pass(denoiser):
    unguided = Unguided()(denoiser, X, T, CONDITIONS)
    assert torch.equal(ClassifierFree(scale=1.0)(denoiser, X, T, CONDITIONS), unguided)
    assert denoiser.backbone.batches == [3, 3]
    torch.testing.assert_close(Interval(scale=1.0, t_low=0, t_high=1)(denoiser, X, T, CONDITIONS), unguided)


def test_scale_zero_is_the_null_condition_in_one_call(denoiser):
    null = denoiser.denoise(X, T, CONDITIONS.null)
    torch.testing.assert_close(ClassifierFree(scale=0.0)(denoiser, X, T, CONDITIONS), null)
    assert denoiser.backbone.batches == [3, 6]


def test_is_linear_in_the_scale(denoiser):
    at = [ClassifierFree(scale=s)(denoiser, X, T, CONDITIONS) for s in (0.0, 1.0, 5.0)]
    torch.testing.assert_close(at[2], at[0] + 5 * (at[1] - at[0]))


@pytest.mark.parametrize("parameterization", [Epsilon(), V()])
def test_guiding_x0_is_guiding_the_output(parameterization):
    path, backbone = ScaledLinearDDPM(), Shift()
    denoiser = Denoiser(backbone=backbone, path=path, parameterization=parameterization)
    cond, null = (backbone(X, T, c) for c in (CONDITIONS.cond, CONDITIONS.null))
    expected = parameterization.to_x0(null + 3 * (cond - null), X, path, T)
    torch.testing.assert_close(ClassifierFree(scale=3.0)(denoiser, X, T, CONDITIONS), expected, atol=1e-4, rtol=1e-5)


def test_interval_guides_inside_alone(denoiser):
    got = Interval(scale=4.0, t_low=0.4, t_high=0.6)(denoiser, X, T, CONDITIONS)
    unguided, guided = Unguided()(denoiser, X, T, CONDITIONS), ClassifierFree(scale=4.0)(denoiser, X, T, CONDITIONS)
    inside = per_sample(torch.tensor([False, True, False]), X)
    torch.testing.assert_close(got, torch.where(inside, guided, unguided))


def test_interval_refuses_an_empty_one():
    with pytest.raises(InputError, match="t_low"):
        Interval(scale=2.0, t_low=0.6, t_high=0.4)

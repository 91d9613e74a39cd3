from __future__ import annotations

import pytest
import torch
from torch import nn

from latentdiff.config.errors import InputError
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.loss import DiffusionLoss
from latentdiff.diffusion.parameterization import Epsilon, Karras, Sample, V, Velocity
from latentdiff.diffusion.path import CosineVP, KarrasVE, LinearDDPM, RectifiedFlow, ScaledLinearDDPM
from latentdiff.diffusion.timesteps import Curriculum, LogitNormal, Uniform
from latentdiff.diffusion.weighting import MinSNR, Unit
from latentdiff.types import Conditioning

T = torch.tensor([0.1, 0.5, 0.9])
PAIRS = [
    (RectifiedFlow(), Velocity()),
    (RectifiedFlow(), Epsilon()),
    (ScaledLinearDDPM(), Epsilon()),
    (ScaledLinearDDPM(), V()),
    (ScaledLinearDDPM(), Sample()),
    (LinearDDPM(zero_terminal_snr=True), V()),
    (CosineVP(), V()),
    (KarrasVE(), Karras()),
    (RectifiedFlow(), Karras(sigma_data=0.5)),
]


class Answer(nn.Module):
    """Gives a fixed answer and remembers what it read and the time that it was told."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, t, cond):
        self.read, self.time = x, t
        return self.answer


def _sample(generator):
    return tuple(torch.randn(3, 2, 4, 4, generator=generator) for _ in range(3))


@pytest.mark.parametrize(("path", "parameterization"), PAIRS)
def test_the_right_answer_denoises_perfectly_at_no_loss(path, parameterization, generator):
    x0, noise, _ = _sample(generator)
    backbone = Answer(parameterization.target(x0, noise, path, T))
    denoiser = Denoiser(backbone=backbone, path=path, parameterization=parameterization)
    got = denoiser.denoise(path.mix(x0, noise, T), T, Conditioning())
    torch.testing.assert_close(got, x0, atol=1e-4, rtol=0)
    torch.testing.assert_close(backbone.time, path.network_time(T))
    torch.testing.assert_close(backbone.read, parameterization.network_input(path.mix(x0, noise, T), path, T))
    loss = DiffusionLoss(timesteps=Uniform(), weighting=Unit())
    assert loss(denoiser, x0, noise, T, Conditioning()).abs().max().item() == 0


@pytest.mark.parametrize("weighting", [Unit(), MinSNR(gamma=5)])
def test_the_loss_is_the_weighted_mean_square_of_each_sample(weighting, generator):
    x0, noise, error = _sample(generator)
    path, parameterization = ScaledLinearDDPM(), V()
    backbone = Answer(parameterization.target(x0, noise, path, T) + error)
    denoiser = Denoiser(backbone=backbone, path=path, parameterization=parameterization)
    got = DiffusionLoss(timesteps=Uniform(), weighting=weighting)(denoiser, x0, noise, T, Conditioning())
    weight = weighting(path, parameterization, T)
    for i in range(3):
        torch.testing.assert_close(got[i], weight[i] * error[i].pow(2).mean())


def test_half_precision_is_lifted_before_the_arithmetic(generator):
    x0, noise, _ = _sample(generator)
    path = RectifiedFlow()
    denoiser = Denoiser(backbone=Answer((noise - x0).bfloat16()), path=path, parameterization=Velocity())
    assert denoiser.denoise(path.mix(x0, noise, T).bfloat16(), T, Conditioning()).dtype == torch.float32
    loss = DiffusionLoss(timesteps=Uniform(), weighting=Unit())
    assert loss(denoiser, x0.bfloat16(), noise.bfloat16(), T, Conditioning()).dtype == torch.float32


def test_sample_t_is_the_law_up_to_t_max():
    loss = DiffusionLoss(timesteps=LogitNormal(mean=0.2), weighting=Unit())
    u = torch.tensor([0.1, 0.9])
    torch.testing.assert_close(loss.sample_t(u), LogitNormal(mean=0.2)(u))
    assert loss.sample_t(u, 0.5).max().item() <= 0.5


def test_sample_t_follows_a_curriculum_by_the_batch():
    first, then = LogitNormal(mean=8.0), LogitNormal(mean=1.0)
    loss = DiffusionLoss(timesteps=Curriculum(first=first, then=then, batches=3), weighting=Unit())
    u = torch.tensor([0.1, 0.9])
    for batch, law in ((0, first), (2, first), (3, then), (None, then)):
        torch.testing.assert_close(loss.sample_t(u, 0.9, batch), law(u, 0.9))


def test_a_refused_pair_cannot_be_built():
    with pytest.raises(InputError, match="velocity"):
        Denoiser(backbone=nn.Identity(), path=ScaledLinearDDPM(), parameterization=Velocity())


def test_t_max_is_that_of_the_pair():
    assert Denoiser(backbone=nn.Identity(), path=RectifiedFlow(), parameterization=Epsilon()).t_max == 0.99
    assert Denoiser(backbone=nn.Identity(), path=RectifiedFlow(), parameterization=Velocity()).t_max == 1.0

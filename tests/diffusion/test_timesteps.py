from __future__ import annotations

import math

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion import grids
from latentdiff.diffusion.noise import Draws
from latentdiff.diffusion.path import CosineVP, KarrasVE, RectifiedFlow, ScaledLinearDDPM
from latentdiff.diffusion.timesteps import Curriculum, DiscreteUniform, LogitNormal, LogNormalSigma, Shifted, Uniform

GRID = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000


@pytest.mark.parametrize("t_max", [1.0, 0.99, 0.5])
def test_uniform_has_the_moments_of_a_uniform(t_max):
    t = Uniform()(GRID, t_max)
    assert t.mean().item() == pytest.approx(t_max / 2)
    assert t.var().item() == pytest.approx(t_max**2 / 12, rel=1e-4)


def test_logit_normal_is_normal_in_the_logit():
    logit = torch.logit(LogitNormal(mean=-0.5, std=1.5)(GRID))
    assert logit.mean().item() == pytest.approx(-0.5, abs=1e-3)
    assert logit.std().item() == pytest.approx(1.5, abs=1e-3)


def test_logit_normal_is_cut_off_not_squeezed():
    law = LogitNormal(mean=0.3)
    whole, cut = law(GRID), law(GRID, 0.6)
    assert cut.max().item() <= 0.6
    kept = whole[whole <= 0.6]
    torch.testing.assert_close(cut.quantile(0.5), kept.quantile(0.5), atol=1e-4, rtol=0)


def test_discrete_uniform_takes_each_entry_equally_often():
    t = DiscreteUniform(steps=10)(GRID)
    values, counts = t.unique(return_counts=True)
    torch.testing.assert_close(values, torch.arange(1, 11, dtype=torch.float64) / 10)
    assert counts.tolist() == [10_000] * 10


def test_discrete_uniform_stops_at_t_max():
    assert DiscreteUniform(steps=10)(GRID, 0.7).max().item() == pytest.approx(0.7)


@pytest.mark.parametrize("path", [RectifiedFlow(), CosineVP(), KarrasVE()])
def test_log_normal_sigma_is_normal_in_the_noise_level(path):
    level = -0.5 * path.log_snr(LogNormalSigma(path=path, mean=-0.7, std=0.9)(GRID))
    assert level.mean().item() == pytest.approx(-0.7, abs=1e-3)
    assert level.std().item() == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize(
    "path", [RectifiedFlow(), KarrasVE(), ScaledLinearDDPM(), ScaledLinearDDPM(zero_terminal_snr=True)]
)
def test_log_normal_sigma_is_cut_off_not_squeezed(path):
    law = LogNormalSigma(path=path, mean=0.5, std=1.5)
    cut = law(GRID, 0.6)
    assert cut.max().item() <= 0.6
    whole = 0.5 + 1.5 * torch.special.ndtri(GRID)
    kept = whole[whole <= -0.5 * path.log_snr(torch.tensor(0.6, dtype=torch.float64))]
    got = -0.5 * path.log_snr(cut.quantile(0.5))
    torch.testing.assert_close(got, kept.quantile(0.5), atol=1e-3, rtol=0)


def test_log_normal_sigma_reaches_no_further_than_the_table():
    t = LogNormalSigma(path=ScaledLinearDDPM(), mean=2.0, std=2.0)(GRID)
    assert t.max().item() <= 1
    assert t.quantile(0.99).item() < 1  # cut off, not piled up at the end


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_shifted_multiplies_the_noise_level_of_rectified_flow(shift):
    path, law = RectifiedFlow(), LogitNormal(mean=0.2)
    difference = path.log_snr(law(GRID)) - path.log_snr(Shifted(law=law, shift=shift)(GRID))
    torch.testing.assert_close(difference, torch.full_like(GRID, 2 * math.log(shift)))


def test_shifted_uniform_is_the_shifted_grid_of_sampling():
    steps = torch.arange(1, 11, dtype=torch.float64).flip(0) / 10
    t = Shifted(law=Uniform(), shift=3.0)(steps)
    torch.testing.assert_close(t.float(), grids.Shifted(shift=3.0)(RectifiedFlow(), 10)[:-1])


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_shifted_is_cut_off_not_squeezed(shift):
    law = Shifted(law=LogitNormal(), shift=shift)
    whole, cut = law(GRID), law(GRID, 0.6)
    assert cut.max().item() <= 0.6
    torch.testing.assert_close(cut.quantile(0.5), whole[whole <= 0.6].quantile(0.5), atol=1e-4, rtol=0)


LAWS = [
    Uniform(),
    LogitNormal(),
    DiscreteUniform(steps=1000),
    Shifted(law=LogitNormal(), shift=3.0),
    Shifted(law=DiscreteUniform(steps=1000), shift=0.3),
    *[LogNormalSigma(path=path) for path in (RectifiedFlow(), CosineVP(), KarrasVE(), ScaledLinearDDPM())],
]


@pytest.mark.parametrize("t_max", [1.0, 0.99])
@pytest.mark.parametrize("law", LAWS)
def test_stays_in_range_for_the_extreme_uniforms_of_float32(law, t_max):
    t = law(torch.tensor([0.0, 1 - 2**-24]), t_max)
    assert t.dtype == torch.float32
    assert bool(((t >= 0) & (t <= t_max)).all())


@pytest.mark.parametrize("law", LAWS)
def test_evenly_spread_uniforms_give_evenly_spread_quantiles(law):
    """One t in each of the law's 16 quantiles, whichever ranks the global batch is spread over."""
    u = torch.cat([Draws(seed=2, number=9, start=s, count=4, total=16).stratified("t") for s in (0, 4, 8, 12)])
    edges = law(torch.arange(17, dtype=torch.float64) / 16)
    t = law(u.double()).sort().values
    assert bool((edges[:-1] <= t).all())
    assert bool((t <= edges[1:]).all())


@pytest.mark.parametrize(
    "build",
    [
        lambda: LogitNormal(std=0),
        lambda: DiscreteUniform(steps=0),
        lambda: LogNormalSigma(path=KarrasVE(), std=0),
        lambda: Shifted(law=Uniform(), shift=0),
    ],
)
def test_refuses_degenerate_laws(build):
    with pytest.raises(InputError):
        build()


def test_the_first_law_of_a_curriculum_rules_at_most_two_fifths_of_a_run():
    laws = {"first": LogitNormal(mean=8.0), "then": LogitNormal()}
    assert Curriculum(**laws, batches=500).batches == 500
    assert Curriculum(**laws, batches=500, total=1300).batches == 500
    assert Curriculum(**laws, batches=500, total=100).batches == 40
    with pytest.raises(InputError, match="at least 0"):
        Curriculum(**laws, batches=-1)

from __future__ import annotations

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.timesteps import DiscreteUniform, LogitNormal, Uniform

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


@pytest.mark.parametrize("law", [Uniform(), LogitNormal(), DiscreteUniform(steps=1000)])
def test_stays_in_range_for_the_extreme_uniforms_of_float32(law):
    t = law(torch.tensor([0.0, 1 - 2**-24]))
    assert t.dtype == torch.float32
    assert bool(((t >= 0) & (t <= 1)).all())


@pytest.mark.parametrize("build", [lambda: LogitNormal(std=0), lambda: DiscreteUniform(steps=0)])
def test_refuses_degenerate_laws(build):
    with pytest.raises(InputError):
        build()

from __future__ import annotations

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws, offset, seeded_noise, stable_hash


def draws(start: int, count: int, *, seed: int = 1, number: int = 7) -> Draws:
    return Draws(seed=seed, number=number, start=start, count=count, total=8)


def test_the_hash_is_the_same_in_every_process():
    assert stable_hash(1, "noise") == 0xD9A47573C98B46FE


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_the_split_over_ranks_changes_nothing(ranks):
    size = 8 // ranks
    parts = [draws(r * size, size) for r in range(ranks)]
    torch.testing.assert_close(
        torch.cat([p.normal("noise", (2, 3)) for p in parts]), draws(0, 8).normal("noise", (2, 3)), atol=0, rtol=0
    )
    torch.testing.assert_close(torch.cat([p.uniform("t") for p in parts]), draws(0, 8).uniform("t"), atol=0, rtol=0)


def test_every_part_of_the_key_matters():
    base = draws(0, 8).normal("noise")
    for other in (
        draws(0, 8).normal("posterior"),
        draws(0, 8, seed=2).normal("noise"),
        draws(0, 8, number=8).normal("noise"),
    ):
        assert not torch.equal(base, other)


def test_a_draw_does_not_depend_on_the_draws_before_it():
    one = draws(0, 8)
    one.uniform("t")
    assert torch.equal(one.normal("noise"), draws(0, 8).normal("noise"))


def test_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    draws(0, 8).normal("noise", (4,))
    seeded_noise([1, 2], "init", (4,))
    assert torch.equal(torch.get_rng_state(), state)


def test_follows_the_named_laws():
    many = Draws(seed=0, number=0, start=0, count=20_000, total=20_000)
    normal, uniform = many.normal("a"), many.uniform("b")
    assert normal.mean().item() == pytest.approx(0, abs=0.03)
    assert normal.std().item() == pytest.approx(1, abs=0.03)
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.01)
    assert 0 <= uniform.min().item() <= uniform.max().item() < 1


def test_rows_outside_the_batch_are_refused():
    with pytest.raises(ValueError, match="not inside"):
        draws(6, 4)


def test_seeded_noise_depends_on_each_seed_alone():
    alone = seeded_noise([5], "init", (3, 2))
    together = seeded_noise([9, 5, 1], "init", (3, 2))
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(seeded_noise([5], 0, (3, 2)), seeded_noise([5], 1, (3, 2)))
    assert not torch.equal(seeded_noise([5], 0, (3, 2)), seeded_noise([5], "0", (3, 2)))


def test_stratified_draws_are_spread_evenly_and_independent_of_the_split():
    whole = Draws(seed=3, number=5, start=0, count=8, total=8).stratified("t")
    assert torch.equal(torch.sort((whole * 8).long()).values, torch.arange(8))
    parts = [Draws(seed=3, number=5, start=s, count=4, total=8).stratified("t") for s in (0, 4)]
    assert torch.equal(torch.cat(parts), whole)


def test_stratified_draws_lower_the_variance_of_a_batch_mean():
    """The mean of u over a batch of 64: variance 1 / (12 64^2) instead of 1 / (12 64)."""

    def variance(draw) -> float:
        means = [draw(Draws(seed=0, number=n, start=0, count=64, total=64)).mean() for n in range(400)]
        return float(torch.stack(means).var())

    assert variance(lambda draws: draws.stratified("t")) == pytest.approx(1 / 12 / 64**2, rel=0.3)
    assert variance(lambda draws: draws.uniform("t")) == pytest.approx(1 / 12 / 64, rel=0.3)


def test_each_stratified_draw_alone_is_uniform():
    u = torch.stack([Draws(seed=1, number=n, start=3, count=1, total=8).stratified("t") for n in range(2000)])
    assert u.mean().item() == pytest.approx(0.5, abs=0.02)
    assert u.var().item() == pytest.approx(1 / 12, rel=0.05)


def test_offset_noise_widens_channel_means_and_nothing_else():
    many = Draws(seed=0, number=0, start=0, count=4000, total=4000)
    noise, shared = many.normal("noise", (3, 4, 4)), many.normal("offset", (3, 1, 1))
    got = offset(noise, shared, 0.5)
    assert got.mean((2, 3)).var().item() == pytest.approx(0.5**2 + 1 / 16, rel=0.05)
    torch.testing.assert_close(got - got.mean((2, 3), keepdim=True), noise - noise.mean((2, 3), keepdim=True))
    assert offset(noise, shared, 0.0) is noise
    with pytest.raises(InputError, match="at least 0"):
        offset(noise, shared, -0.1)

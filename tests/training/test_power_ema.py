"""Averages of any length from those of two lengths, against sums over the whole trajectory in float64."""

import copy

import pytest
import torch
from torch import nn

from latentdiff.config.errors import InputError
from latentdiff.nn.freeze import freeze
from latentdiff.training.power_ema import LONGEST, PowerEma, Profile, coefficients, gamma_of


def exact_weights(steps: int, gamma: float) -> torch.Tensor:
    """The part of each of the times 1 to ``steps`` in an average taken at the end: the profile's integral over it."""
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    return (t / steps) ** (gamma + 1) - ((t - 1) / steps) ** (gamma + 1)


def density(profile: Profile, tau: torch.Tensor) -> torch.Tensor:
    inside = (profile.gamma + 1) * tau**profile.gamma / profile.end ** (profile.gamma + 1)
    return torch.where(tau <= profile.end, inside, 0.0)


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_published_powers(length, gamma):
    """arXiv:2312.02696 section 3.1."""
    assert gamma_of(length) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("length", [0.01, 0.05, 0.13, 0.25, 0.288])
def test_length_is_the_deviation_of_the_profile(length):
    tau = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    p = density(Profile.of(end=1, length=length), tau) / len(tau)
    mean = (tau * p).sum()
    assert ((tau - mean) ** 2 * p).sum().sqrt().item() == pytest.approx(length, rel=1e-5)


@pytest.mark.parametrize("length", [0.0, -0.1, LONGEST, 0.5])
def test_lengths_out_of_range_are_refused(length):
    with pytest.raises(InputError, match=r"expected one in \(0, 0\.2887\)"):
        gamma_of(length)


@pytest.mark.parametrize("lengths", [[0.05], [], [0.1, 0.1]])
def test_two_lengths_are_needed(lengths):
    with pytest.raises(InputError, match="at least two different ones"):
        PowerEma(nn.Linear(1, 1), lengths=lengths)


def test_average_is_the_weighted_sum_over_the_trajectory():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    averages, history = PowerEma(model, lengths=(0.05, 0.2)), []
    for _ in range(50):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        averages.update(model)
        history.append(model.weight.detach().clone())
    for average, length in zip(averages.averages, (0.05, 0.2)):
        weights = exact_weights(50, gamma_of(length))
        expected = (weights[:, None, None] * torch.stack(history)).sum(0)
        torch.testing.assert_close(average.weight, expected, rtol=1e-12, atol=1e-12)
        assert weights.sum().item() == pytest.approx(1.0)


def test_frozen_parts_are_shared_buffers_copied_and_the_state_goes_on():
    def model():
        torch.manual_seed(0)
        return nn.ModuleDict({"a": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2), "frozen": freeze(nn.Linear(2, 3))})

    part = model()
    averages = PowerEma(part)
    parent = nn.ModuleDict({"part": part, "averages": averages}).train()
    assert not any(p.requires_grad for p in averages.parameters())
    assert not any(m.training for average in averages.averages for m in average.modules())
    assert parent["averages"].averages[0]["frozen"] is part["frozen"]
    assert not any("frozen" in name for name in averages.state_dict())
    other = PowerEma(part)
    for n in range(5):
        part["norm"].running_mean.fill_(n)
        nn.init.constant_(part["a"].weight, float(n))
        averages.update(part)
    assert torch.equal(averages.averages[1]["norm"].running_mean, torch.full((2,), 4.0))
    other.load_state_dict(copy.deepcopy(averages.state_dict()), strict=True)
    nn.init.constant_(part["a"].weight, 9.0)
    averages.update(part)
    other.update(part)
    assert int(other.updates) == other.count == 6
    assert torch.equal(other.averages[0]["a"].weight, averages.averages[0]["a"].weight)


@pytest.mark.parametrize("ends", [(1.0, 1.0), (0.4, 1.0), (1.0, 0.4), (0.1, 0.9)])
def test_error_is_the_distance_of_the_profiles(ends):
    """Profiles on a fine grid: their least squares give the coefficients, their distance the error."""
    given = [Profile.of(end=end, length=length) for end, length in zip(ends, (0.05, 0.1))]
    wanted = Profile.of(end=1.0, length=0.08)
    tau = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    basis, target = torch.stack([density(profile, tau) for profile in given]), density(wanted, tau)
    x, error = coefficients(given, wanted)
    assert x.sum().item() == pytest.approx(1.0, abs=1e-12)
    distance = (x @ basis - target).norm() / target.norm()
    assert error == pytest.approx(distance.item(), abs=1e-4)
    for step in (1e-3, -1e-3):  # no better weights with this sum
        moved = x + torch.tensor([step, -step], dtype=torch.float64)
        assert (moved @ basis - target).norm() / target.norm() >= distance - 1e-9


def test_a_length_that_is_there_is_taken_as_it_is():
    given = [Profile.of(end=end, length=length) for end in (100, 200) for length in (0.05, 0.1)]
    x, error = coefficients(given, Profile.of(end=200, length=0.1))
    assert error < 1e-6
    torch.testing.assert_close(x, torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64), atol=1e-9, rtol=0)
    twice, _ = coefficients([*given, given[3]], Profile.of(end=200, length=0.1))
    assert twice[[3, 4]].sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("length", [0.07, 0.13, 0.2])
def test_reconstruction_is_the_tracked_average_within_one_percent(length):
    """Drift, noise, weights that stand far from 0, and one that stands still; 2000 updates, a snapshot every 25."""
    torch.manual_seed(0)
    steps, every = 2000, 25
    t = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    noise = torch.randn(steps, 64, dtype=torch.float64)
    walk = noise.cumsum(0) / steps**0.5
    trajectory = torch.cat([5 + t.sqrt() + 0.1 * noise, walk + 0.02 * noise, torch.full((steps, 4), 3.0)], dim=1)
    model = nn.Linear(trajectory.shape[1], 1, bias=False)
    averages, snapshots, profiles = PowerEma(model), [], []
    for step, weights in enumerate(trajectory, start=1):
        with torch.no_grad():
            model.weight.copy_(weights)
        averages.update(model)
        if step % every == 0:
            snapshots += [average.weight.detach().clone().double() for average in averages.averages]
            profiles += [Profile.of(end=step, length=own) for own in averages.lengths]
    tracked = (exact_weights(steps, gamma_of(length))[:, None] * trajectory).sum(0)
    x, error = coefficients(profiles, Profile.of(end=steps, length=length))
    found = sum(weight * snapshot[0] for weight, snapshot in zip(x, snapshots))
    assert error < 2e-3
    for part in (slice(0, 64), slice(64, 128)):
        distance = (tracked - trajectory[-1])[part].norm()
        assert (found - tracked)[part].norm() <= 0.01 * distance
    torch.testing.assert_close(found[128:], trajectory[-1, 128:], rtol=1e-6, atol=0)

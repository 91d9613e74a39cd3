import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from latentdiff.training.optim import WarmupConstant, WarmupCosine, restore_settings, set_learning_rate


def test_constant_rises_to_one_and_stays():
    schedule = WarmupConstant(warmup=4)
    assert [schedule(batch) for batch in (0, 1, 3, 4, 5, 1000)] == pytest.approx([0.2, 0.4, 0.8, 1.0, 1.0, 1.0])
    assert WarmupConstant()(0) == 1.0


def test_cosine_at_its_landmarks():
    schedule = WarmupCosine(warmup=9, total=109, final=0.2)
    assert schedule(0) == pytest.approx(0.1)
    assert schedule(8) == pytest.approx(0.9)
    assert schedule(9) == 1.0
    assert schedule(59) == pytest.approx(0.6)  # half way: the middle between 1 and 0.2
    assert schedule(34) == pytest.approx(0.2 + 0.8 * (1 + 0.5**0.5) / 2)  # a quarter: cos 45 degrees
    assert schedule(109) == schedule(5000) == pytest.approx(0.2)


def test_cosine_without_room_to_fall():
    assert WarmupCosine(total=0)(0) == 1.0
    assert WarmupCosine(warmup=5, total=5)(5) == 1.0


def test_rate_is_the_factor_of_the_optimisers_own():
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=0.4)
    assert [set_learning_rate(optimizer, factor) for factor in (0.5, 1.0, 0.25)] == pytest.approx([0.2, 0.4, 0.1])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_settings_are_this_runs_after_loading_a_state():
    """A resumed run can lower its rate: torch takes rate, betas and weight decay from the state that it loads.

    The rate in force stays the saved one until the next batch sets it: a run with nothing left saves it unchanged.
    """
    weight = nn.Parameter(torch.ones(2))
    before = AdamW([weight], lr=1e-2, weight_decay=0.5)
    weight.sum().backward()
    before.step()
    after = AdamW([weight], lr=1e-3, betas=(0.5, 0.6))
    after.load_state_dict(before.state_dict())
    assert after.param_groups[0]["lr"] == 1e-2
    restore_settings(after)
    (group,) = after.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-2, (0.5, 0.6), after.defaults["weight_decay"])
    assert set_learning_rate(after, 0.5) == 5e-4
    assert after.state[weight]["step"] == 1

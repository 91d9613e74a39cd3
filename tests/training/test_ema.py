import copy

import pytest
import torch
from torch import nn

from latentdiff.nn.freeze import freeze
from latentdiff.training.ema import Ema


def model():
    torch.manual_seed(0)
    return nn.ModuleDict({"trained": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2), "frozen": freeze(nn.Linear(2, 3))})


def test_closed_form_with_warm_up():
    """Weights w_n after update n: shadow_n = d_n shadow + (1 - d_n) w_n with d_n = min(0.25, (1 + n) / (10 + n))."""
    part = nn.Linear(1, 1, bias=False)
    nn.init.constant_(part.weight, 8.0)
    ema, expected = Ema(part, decay=0.25), 8.0
    for n in range(6):
        with torch.no_grad():
            part.weight.fill_(float(n))
        ema.update(part)
        decay = min(0.25, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
        assert ema.model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert [min(0.25, (1 + n) / (10 + n)) for n in (0, 1, 2, 3)] == [0.1, 2 / 11, 0.25, 0.25]


def test_constant_weights_are_their_own_average():
    part = model()
    ema = Ema(part, decay=0.999)
    for _ in range(3):
        ema.update(part)
    assert all(torch.equal(a, b) for a, b in zip(ema.model.parameters(), part.parameters()))


def test_frozen_parts_are_shared_and_trained_ones_copied():
    part = model()
    ema = Ema(part, decay=0.9)
    assert ema.model["frozen"] is part["frozen"]
    assert ema.model["trained"] is not part["trained"]
    assert ema.model["trained"].weight.data_ptr() != part["trained"].weight.data_ptr()
    assert set(ema.state_dict()) == {
        "updates",
        *(f"model.{name}" for name in part.state_dict()),
    }
    assert not any("frozen" in name for name in ema.state_dict())


def test_a_wholly_frozen_model_is_shared():
    part = freeze(nn.Linear(2, 2))
    assert Ema(part, decay=0.9).model is part


def test_buffers_are_copied_not_averaged():
    part = model()
    ema = Ema(part, decay=0.999)
    part["norm"].running_mean.fill_(5.0)
    part["norm"].num_batches_tracked.fill_(7)
    ema.update(part)
    assert torch.equal(ema.model["norm"].running_mean, torch.full((2,), 5.0))
    assert ema.model["norm"].num_batches_tracked == 7


def test_never_trains():
    part = model()
    ema = Ema(part, decay=0.9)
    parent = nn.ModuleDict({"model": part, "ema": ema}).train()
    assert part["trained"].training
    assert not any(m.training for m in ema.model.modules())
    ema.update(part)
    assert not any(p.requires_grad for p in ema.parameters())
    assert all(p.requires_grad for p in part["trained"].parameters())
    assert parent["ema"] is ema


@pytest.mark.parametrize("updates_before", [0, 9])
def test_state_dict_continues_where_it_stood(updates_before):
    """Into a fresh average and into one that has counted on its own."""
    part = model()
    ema, other = Ema(part, decay=0.9), Ema(part, decay=0.9)
    for n in range(4):
        nn.init.constant_(part["trained"].weight, float(n))
        ema.update(part)
    for _ in range(updates_before):
        other.update(part)
    other.load_state_dict(copy.deepcopy(ema.state_dict()), strict=True)
    nn.init.constant_(part["trained"].weight, 10.0)
    ema.update(part)
    other.update(part)
    assert int(other.updates) == int(ema.updates) == 5
    assert torch.equal(other.model["trained"].weight, ema.model["trained"].weight)


def test_tensors_that_are_replaced_frozen_or_moved_later_are_noticed():
    part = model()
    ema = Ema(part, decay=0.5)
    ema.update(part)
    part["norm"]._buffers["running_mean"] = torch.full((2,), 3.0)  # as .to(device) does
    part["trained"].weight = nn.Parameter(torch.full((2, 2), 7.0))
    part["trained"].bias.requires_grad_(False)
    bias = ema.model["trained"].bias.clone()
    with torch.no_grad():
        part["trained"].bias.add_(1.0)
    before = ema.model["trained"].weight.clone()
    ema.update(part)
    assert torch.equal(ema.model["norm"].running_mean, torch.full((2,), 3.0))
    torch.testing.assert_close(ema.model["trained"].weight, torch.lerp(before, torch.full((2, 2), 7.0), 1 - 2 / 11))
    assert torch.equal(ema.model["trained"].bias, bias)


def test_a_copy_follows_its_own_model():
    whole = nn.ModuleDict({"model": (part := model()), "ema": (ema := Ema(part, decay=0.5))})
    ema.update(part)
    other = copy.deepcopy(whole)
    nn.init.constant_(part["trained"].weight, 5.0)
    kept = {name: value.clone() for name, value in ema.state_dict().items()}
    other["ema"].update(other["model"])
    assert all(torch.equal(value, kept[name]) for name, value in ema.state_dict().items())
    ema.update(part)
    assert not torch.equal(ema.model["trained"].weight, other["ema"].model["trained"].weight)


def test_tied_weights_move_once():
    part = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    part[1].weight = part[0].weight
    ema = Ema(part, decay=0.9)
    before = ema.model[0].weight.clone()
    with torch.no_grad():
        part[0].weight.fill_(4.0)
    ema.update(part)
    assert ema.model[0].weight is ema.model[1].weight
    torch.testing.assert_close(ema.model[0].weight, torch.lerp(before, torch.full((2, 2), 4.0), 0.9))


def test_the_model_is_walked_once(monkeypatch):
    part = model()
    ema = Ema(part, decay=0.9)
    ema.update(part)
    monkeypatch.setattr(nn.Module, "named_modules", lambda *_: pytest.fail("walked again"))
    monkeypatch.setattr(nn.Module, "named_parameters", lambda *_: pytest.fail("walked again"))
    ema.update(part)


def test_restart():
    part = model()
    ema = Ema(part, decay=0.9)
    for n in range(3):
        nn.init.constant_(part["trained"].weight, float(n))
        ema.update(part)
    ema.restart(part)
    assert torch.equal(ema.model["trained"].weight, part["trained"].weight)
    assert int(ema.updates) == 0
    nn.init.constant_(part["trained"].weight, 5.0)
    ema.update(part)
    torch.testing.assert_close(ema.model["trained"].weight, torch.full((2, 2), 0.1 * 2 + 0.9 * 5))

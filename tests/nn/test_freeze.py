import copy
import pickle

import pytest
import torch
from torch import nn

from latentdiff.nn.freeze import freeze, is_frozen


class Parent(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Linear(2, 2)
        self.part = freeze(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()))


def test_train_leaves_it_in_eval_mode():
    parent = Parent().train()
    assert parent.own.training
    assert not any(m.training for m in parent.part.modules())
    assert parent.part.train() is parent.part


def test_nothing_in_it_requires_gradients():
    assert not any(p.requires_grad for p in Parent().part.parameters())


def test_it_is_absent_from_the_parent_and_complete_by_itself():
    parent = Parent()
    assert set(parent.state_dict()) == {"own.weight", "own.bias"}
    assert len(parent.part.state_dict()) == 7


def test_loading_the_parent_is_strict_and_keeps_the_part():
    source, target = Parent(), Parent()
    before = copy.deepcopy(target.part.state_dict())
    target.load_state_dict(source.state_dict(), strict=True)
    assert torch.equal(target.own.weight, source.own.weight)
    assert all(torch.equal(before[k], v) for k, v in target.part.state_dict().items())
    with pytest.raises(RuntimeError, match=r"own\.bias"):
        target.load_state_dict({"own.weight": torch.zeros(2, 2)})
    with pytest.raises(RuntimeError, match="stranger"):
        target.load_state_dict(source.state_dict() | {"stranger": torch.zeros(1)})


def test_tensors_that_are_there_are_loaded():
    parent = Parent()
    whole = parent.state_dict() | {f"part.{k}": v + 1 for k, v in parent.part.state_dict().items()}
    expected = {k: v + 1 for k, v in copy.deepcopy(parent.part.state_dict()).items()}
    parent.load_state_dict(whole)
    assert all(torch.equal(expected[k], v) for k, v in parent.part.state_dict().items())


def test_twice_is_once():
    parent = Parent()
    hooks = len(parent.part._state_dict_hooks), len(parent.part._load_state_dict_pre_hooks)
    assert freeze(parent.part) is parent.part
    assert (len(parent.part._state_dict_hooks), len(parent.part._load_state_dict_pre_hooks)) == hooks


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_frozen_by_themselves(clone):
    twin = clone(Parent())
    assert is_frozen(twin.part)
    assert twin.part.train() is twin.part
    assert set(twin.state_dict()) == {"own.weight", "own.bias"}


def test_a_frozen_part_inside_a_frozen_part_loads_strictly():
    outer = nn.ModuleDict(
        {"frozen": freeze(nn.ModuleDict({"inner": freeze(nn.Linear(1, 1)), "head": nn.Linear(1, 1)}))}
    )
    assert not outer.state_dict()
    outer.load_state_dict({}, strict=True)

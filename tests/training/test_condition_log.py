import pytest
import torch
from torch import nn

from latentdiff.training.condition_log import ConditionLog


def test_batches_count_by_their_samples():
    log = ConditionLog(parts=("text", "map"))
    assert log.update([0.5, 0.0], 1, 2) == {"dropped/text": 0.5, "dropped/map": 0.0, "captions_cut": 1}
    expected = {"dropped/text": 1 / 8, "dropped/map": 6 / 8, "captions_cut": 3}
    assert log.update([0.0, 1.0], 2, 6) == pytest.approx(expected)


def test_it_goes_on_from_a_checkpoint_and_starts_anew_without():
    one, other = ConditionLog(parts=("text",)), ConditionLog(parts=("text",))
    one.update([0.25], 3, 8)
    other.load_state_dict(one.state_dict())
    assert other.update([0.5], 0, 8) == one.update([0.5], 0, 8) == {"dropped/text": 0.375, "captions_cut": 3}
    parent = nn.ModuleDict({"log": other, "weight": nn.Linear(1, 1)})
    old = {name: value for name, value in parent.state_dict().items() if "extra" not in name}
    parent.load_state_dict(old, strict=True)
    assert torch.equal(other.get_extra_state(), torch.zeros(3, dtype=torch.float64))

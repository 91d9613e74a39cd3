import pytest
import torch

from latentdiff.data.datamodule import DataModule
from latentdiff.data.degradations import Degraded
from latentdiff.data.sources import ShapesSource


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    source = ShapesSource(
        root=str(tmp_path_factory.mktemp("shapes")), image_size=16, seed=0, train_samples=20, val_samples=11
    )
    made = DataModule(source=source, image_size=16, global_batch=4, seed=0, conditions={"low_res": Degraded(factor=4)})
    made.prepare_data()
    return made


def joined(batches, name):
    return torch.cat([getattr(batch, name) for batch in batches])


@pytest.mark.parametrize("workers", [0, 2])
def test_ranges_are_those_samples_however_they_are_asked_for(data, workers):
    data.num_workers = workers
    ranges = data.ranges_of(data.val_set, with_conditions=True)
    whole = list(data.val_dataloader())
    assert len(ranges) == 11
    own = list(ranges.in_order([range(6, 11), range(0, 3), range(3, 6)]))
    assert [batch.keys for batch in own] == [
        [data.val_set.key(i) for i in r] for r in ((6, 7, 8, 9, 10), (0, 1, 2), (3, 4, 5))
    ]
    in_order = [own[1], own[2], own[0]]
    for name in ("image", "low_res", "label"):
        assert torch.equal(joined(in_order, name), joined(whole, name))
    assert torch.equal(ranges(range(4, 7)).image, joined(whole, "image")[4:7])
    assert list(ranges.in_order([])) == []


def test_training_ranges_are_spread_over_the_set_for_every_rank(data, monkeypatch):
    alone = joined(list(data.statistics_batches(7)), "image")
    monkeypatch.setattr(DataModule, "_rank_and_ranks", lambda self: (1, 2))
    ranges = data.training_ranges(7)
    assert torch.equal(ranges(range(7)).image, alone)
    assert ranges(range(7)).low_res is None
    assert len(data.training_ranges(1000)) == 20

import pytest

from latentdiff.config.errors import InputError
from latentdiff.training.callbacks.checkpoints import Checkpoints
from latentdiff.training.callbacks.ema_snapshots import EmaSnapshots
from latentdiff.training.callbacks.images import ReconstructionGrid, SampleGrid
from latentdiff.training.callbacks.metrics_log import MetricsLog
from latentdiff.training.callbacks.replicas import ReplicaCheck

HOW = {"sampler": None, "grid": None, "steps": 1, "guidance": None}


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda n: Checkpoints(run_dir="", every=n), "checkpoints.every"),
        (lambda n: Checkpoints(run_dir="", keep=n), "checkpoints.keep"),
        (lambda n: MetricsLog(run_dir="", every=n), "log.every"),
        (lambda n: ReplicaCheck(every=n), "replicas.every"),
        (lambda n: EmaSnapshots(run_dir="", total=1, count=n), "ema_snapshots.count"),
        (lambda n: ReconstructionGrid(run_dir="", every=n), "reconstructions.every"),
        (lambda n: ReconstructionGrid(run_dir="", count=n), "reconstructions.count"),
        (lambda n: SampleGrid(run_dir="", every=n, **HOW), "samples.every"),
        (lambda n: SampleGrid(run_dir="", count=n, **HOW), "samples.count"),
    ],
)
def test_intervals_and_counts_are_positive(make, key, value):
    with pytest.raises(InputError, match=rf"^callbacks\.{key}: expected at least 1, got {value}$"):
        make(value)

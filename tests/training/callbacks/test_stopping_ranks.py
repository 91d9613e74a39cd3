"""Two ranks that one of them, or the scheduler, wants to stop: both leave after the same batch, with one decision."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import latentdiff

SCRIPT = Path(__file__).with_name("stopping_ranks.py")


def environment() -> dict[str, str]:
    own = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    path = os.pathsep.join([str(Path(latentdiff.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return {k: v for k, v in os.environ.items() if k not in own} | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stopping")


@pytest.fixture(scope="module")
def ranks(home) -> list[dict]:
    """What became of each scenario on each rank."""
    command = [sys.executable, str(SCRIPT), str(home / "results")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return [torch.load(home / f"results.{rank}", weights_only=True) for rank in (0, 1)]


def both(ranks, name: str) -> dict:
    """The outcome, which has to be the same on both ranks, weights too."""
    one, two = (rank[name] for rank in ranks)
    assert [one[key] for key in ("end", "seen", "saved")] == [two[key] for key in ("end", "seen", "saved")]
    assert all(torch.equal(value, two["weights"][key]) for key, value in one["weights"].items())
    return one


@pytest.mark.parametrize(
    ("name", "number", "batch"),
    [
        ("rank_0_alone", signal.SIGTERM, 3),
        ("rank_1_alone", signal.SIGUSR1, 3),
        ("both", signal.SIGINT, 3),
        ("both_twice", signal.SIGTERM, 3),
        ("validating", signal.SIGTERM, 2),
    ],
)
def test_a_signal_to_any_rank_stops_all_at_the_same_batch(ranks, name, number, batch):
    found = both(ranks, name)
    assert found["end"] == f"{128 + number}: stopped by {number.name}; state saved"
    assert (found["seen"], found["saved"]) == (batch, batch)


def test_the_time_is_up_for_all_at_once(ranks):
    found = both(ranks, "time")
    assert re.fullmatch(r"0: trainer.max_time is up at batch \d+; state saved", found["end"])
    assert 0 < found["seen"] == found["saved"] < 100


def test_a_loss_that_is_not_finite_on_one_rank_stops_both(ranks, home):
    found = both(ranks, "stop")
    assert found["end"].startswith("NonFiniteError: batch 2 (counted from 0): loss (samples 2-2): not finite. The")
    assert (found["seen"], found["saved"]) == (2, None)
    dumps = [torch.load(home / f"stop/nonfinite/batch-00000002-rank-{r}.pt", weights_only=True) for r in (0, 1)]
    assert [dump["batch"]["keys"] for dump in dumps] == [["2-0", "2-1"], ["2-2", "2-3"]]
    assert [torch.isnan(dump["values"]["loss"]).tolist() for dump in dumps] == [[False, False], [True, False]]


def test_or_is_passed_over_by_both(ranks):
    found = both(ranks, "skip")
    assert (found["end"], found["seen"]) == ("done", 4)
    assert all(torch.isfinite(value).all() for value in found["weights"].values())
    assert found["weights"]["ema.updates"] == 3


def test_replicas_that_drift_apart_by_one_bit_are_noticed(ranks):
    one, two = (rank["replicas"]["end"] for rank in ranks)
    assert one == two
    assert one.startswith("ReplicaError: after batch 2 the weights are not the same on all ranks: ranks 0 and 1 differ")
    assert "first in 'model.denoiser.backbone.out.2.bias'" in one


@pytest.mark.parametrize(("name", "batch"), [("nothing", 0), ("older", 2)])
def test_ranks_that_find_different_checkpoints_do_not_start(ranks, name, batch):
    one, two = (rank[f"rank 1 has {name}"] for rank in ranks)
    assert one["end"] == two["end"]
    assert one["end"].startswith(f"RunError: rank 1 stands at batch {batch}, rank 0 at 3: run_dir must be on a file")
    assert (one["seen"], two["seen"]) == (0, 0)

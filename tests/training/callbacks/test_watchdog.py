import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import latentdiff
from latentdiff.config.errors import InputError
from latentdiff.training.callbacks import watchdog
from latentdiff.training.callbacks.watchdog import Watchdog

SCRIPT = Path(__file__).with_name("hanging_ranks.py")


class Store(dict):
    """In place of the TCP store; ``alive`` ranks tell something new whenever they are asked."""

    def __init__(self, messages: dict[int, str], alive: set[int]):
        super().__init__({str(rank): message for rank, message in messages.items()})
        self.alive, self.asked = alive, 0

    def check(self, keys: list[str]) -> bool:
        return keys[0] in self

    def get(self, key: str) -> bytes:
        self.asked += 1
        return (f"{self.asked}|{self[key]}" if int(key) in self.alive else f"0|{self[key]}").encode()

    def set(self, key: str, value: str) -> None:
        """The watch's own message stays what the test says."""


class GoneStore:
    def check(self, keys):
        raise RuntimeError("connection refused")

    set = check


def asked(store, ranks: int) -> str:
    """What rank 0's watch says of the others."""
    module = SimpleNamespace(counters=SimpleNamespace(batches_seen=7))
    watch = watchdog._Watch(
        SimpleNamespace(global_rank=0, world_size=1, strategy=SimpleNamespace(launcher=None)), module, 1.0
    )
    watch.ranks, watch._store = ranks, store
    return watch._whom_we_wait_for(0.0)


@pytest.mark.parametrize(
    ("messages", "alive", "said"),
    [
        (
            {
                0: "9|batch 7, in its backward pass",
                1: "9|batch 7, in its backward pass",
                2: "8|batch 7, in its forward",
            },
            {0, 1, 2},
            "Rank 2 is behind and stuck: after batch 7, in its forward. The others wait for it.",
        ),
        (
            {0: "9|batch 7, x", 1: "8|batch 7, y", 2: "8|batch 7, y", 3: "9|batch 7, x"},
            {0, 1, 2, 3},
            "Rank 1, 2 is behind and stuck: after batch 7, y. The others wait for it.",
        ),
        ({0: "9|batch 7, x", 1: "9|batch 7, x"}, {0}, "Rank 1 no longer answers: dead, stopped or cut off."),
        ({0: "9|batch 7, x"}, {0}, "Rank 1 no longer answers: dead, stopped or cut off."),
        ({0: "9|batch 7, x", 1: "9|batch 7, x"}, {0, 1}, "All ranks stand at the same point: compare their stacks."),
    ],
)
def test_the_rank_that_is_behind_is_named(messages, alive, said):
    assert asked(Store(messages, alive), max(2, len(messages))) == said


def test_a_store_that_went_with_rank_0_is_understood():
    assert asked(GoneStore(), 2) == "Rank 0 is gone, all others wait for it."


def test_a_run_that_moves_is_left_alone(diffusion_module, batch, fit):
    """Its thread ends with it; 0 starts none."""
    before = threading.active_count()
    fit(diffusion_module(), [batch(i) for i in range(3)], Watchdog(timeout=100.0), val_check_interval=2)
    fit(diffusion_module(), [batch(0)], Watchdog(timeout=0.0))
    for thread in threading.enumerate():
        if thread.name == "watchdog":
            thread.join(5.0)
    assert threading.active_count() == before


def test_a_timeout_that_is_none_is_refused():
    with pytest.raises(InputError, match=r"callbacks\.watchdog\.timeout"):
        Watchdog(timeout=-1.0)


def hang(tmp_path: Path, what: str, *alone: str) -> subprocess.CompletedProcess:
    """The run, which has to end by itself."""
    own = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    path = os.pathsep.join([str(Path(latentdiff.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {k: v for k, v in os.environ.items() if k not in own} | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(tmp_path), what, *alone]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("what", "where", "stack"),
    [
        ("sleep in a batch", "in its forward pass", "in on_train_batch_start"),
        ("sleep in the loader", "waiting for a batch", "in __iter__"),
        ("sleep in validation", "in validation", "in on_validation_batch_start"),
    ],
)
def test_all_ranks_name_the_one_that_hangs(tmp_path, what, where, stack):
    ended = hang(tmp_path, what)
    assert ended.returncode == 1, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: rank")]
    assert sorted(line[:13] for line in lines) == ["error: rank 0", "error: rank 1"]
    assert all(f"Rank 1 is behind and stuck: after batch 2, {where}. The others wait for it." in line for line in lines)
    assert stack in ended.stderr


@pytest.mark.faults
def test_a_rank_that_is_frozen_is_named(tmp_path):
    ended = hang(tmp_path, "SIGSTOP")
    assert ended.returncode == 1, ended.stderr
    assert (
        "error: rank 0 has made no step for 4 s: after batch 2, in its backward pass. Rank 1 no longer" in ended.stderr
    )


@pytest.mark.faults
def test_a_rank_that_is_killed_ends_the_others(tmp_path):
    """Over gloo the others get an error at once; Lightning kills rank 0 where they do not."""
    ended = hang(tmp_path, "SIGKILL")
    assert ended.returncode in (1, -9), ended.stderr


@pytest.mark.faults
def test_one_process_that_hangs_ends(tmp_path):
    ended = hang(tmp_path, "sleep in the loader", "alone")
    assert ended.returncode == 1, ended.stderr
    assert "error: rank 0 has made no step for 4 s: after batch 2, waiting for a batch. The process is" in ended.stderr
    assert "in __iter__" in ended.stderr

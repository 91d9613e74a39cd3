"""Two processes that talk: what one meets ends both, with one message."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import latentdiff
from latentdiff.app.ranks import Ranks, launched
from latentdiff.config.errors import InputError

WORKER = """
import json, os, sys, time
from pathlib import Path
from omegaconf import OmegaConf
from latentdiff.app.ranks import launched
from latentdiff.config.errors import InputError, RunError

folder = Path(sys.argv[1])
trainer = {"accelerator": "cpu", "devices": 2, "precision": "32-true", "strategy": {"_target_": "x.DDPStrategy"}}
ranks = launched(OmegaConf.create(trainer))
found = {"place": [ranks.rank, ranks.count, ranks.first, str(ranks.device)]}

def attempt(name, work):
    try:
        with ranks.together(folder / "sign"):
            found[name] = work()
    except BaseException as error:
        found[name] = [type(error).__name__, str(error)]

def told():
    ranks.barrier()
    return ranks.broadcast({"a": [1, 2]} if ranks.first else "not read")

def refused():
    if ranks.first:
        ranks.barrier()
    raise InputError("rank 1 has read it")

def second_breaks():
    ranks.broadcast(None)
    if not ranks.first:
        raise ValueError("a mistake")

def first_breaks():
    if ranks.first:
        raise ValueError("its own")
    while True:
        time.sleep(0.01)
        ranks.check()

def both_refuse():
    raise InputError("a fault of the configuration")

def other_ends():
    if not ranks.first:
        (folder / "1.json").write_text(json.dumps(found))
        os._exit(9)
    ranks.barrier()

for work in (told, refused, second_breaks, first_breaks, both_refuse, told, other_ends):
    attempt(work.__name__, work)
    found["sign left"] = found.get("sign left") or (folder / "sign").exists()
(folder / "0.json").write_text(json.dumps(found))
os._exit(0)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> list[dict]:
    """What each of the two has found."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    environment = {**os.environ, **group, "PYTHONPATH": str(Path(latentdiff.__file__).parents[1])}
    command = [sys.executable, "-c", WORKER, str(folder)]
    workers = [
        subprocess.Popen(command, env={**environment, "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 9], said
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return [each | {"said": text} for each, text in zip(found, said)]


def test_each_knows_its_place(answers):
    assert [each["place"] for each in answers] == [[0, 2, True, "cpu"], [1, 2, False, "cpu"]]


def test_what_the_first_gives_all_have(answers):
    assert [each["told"] for each in answers] == [{"a": [1, 2]}, {"a": [1, 2]}]


def test_a_fault_of_one_is_raised_by_the_first_alone(answers):
    first, second = answers
    assert first["refused"] == ["InputError", "rank 1 has read it"]
    assert second["refused"] == ["SystemExit", "0"]
    assert first["both_refuse"] == ["InputError", "a fault of the configuration"]
    assert second["both_refuse"] == ["SystemExit", "0"]


def test_an_unforeseen_fault_is_printed_where_it_was_met(answers):
    first, second = answers
    assert first["second_breaks"] == ["RunError", "rank 1 failed, its message is above: a mistake"]
    assert second["second_breaks"] == ["SystemExit", "0"]
    assert "ValueError: a mistake" in second["said"]
    assert "Traceback" not in first["said"]


def test_long_work_ends_soon_where_another_has_failed(answers):
    first, second = answers
    assert first["first_breaks"] == ["ValueError", "its own"]
    assert second["first_breaks"] == ["SystemExit", "0"]
    assert first["sign left"] is False


def test_a_process_that_is_gone_is_told(answers):
    kind, message = answers[0]["other_ends"]
    assert kind == "RunError"
    assert "another process of this command has ended" in message


def test_one_process_exchanges_with_itself(tmp_path):
    ranks = Ranks(0, 1, torch.device("cpu"), None)
    with ranks.together(tmp_path / "sign"):
        ranks.barrier()
        ranks.check()
        assert ranks.broadcast(3) == 3
    with pytest.raises(ValueError, match="as it is"), ranks.together(tmp_path / "sign"):
        raise ValueError("as it is")


def trainer(**changes):
    return OmegaConf.create({"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true"} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"devices": 2, "strategy": {"_target_": "latentdiff.training.parallel.FullySharded"}},
            "holds the whole model; use trainer=ddp",
        ),
        ({"devices": 2}, "2 devices are shared by processes; use trainer=ddp, or ddp_cpu"),
        ({"precision": "16-mixed"}, r"trainer\.precision: expected auto"),
    ],
)
def test_trainers_that_evaluations_do_not_have(changes, message):
    with pytest.raises(InputError, match=message):
        launched(trainer(**changes))


def test_a_launcher_with_another_number_of_processes(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="the launcher started 4 processes"):
        launched(trainer(devices=2, strategy={"_target_": "pytorch_lightning.strategies.DDPStrategy"}))

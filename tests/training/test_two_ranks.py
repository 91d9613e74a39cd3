"""Two processes over gloo end with the weights that one process ends with, from the same global batches."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import latentdiff

SCRIPT = Path(__file__).with_name("two_ranks.py")


def load():
    spec = importlib.util.spec_from_file_location("two_ranks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What the two ranks of one run of the script wrote."""
    out = tmp_path_factory.mktemp("two") / "results"
    own = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    path = os.pathsep.join([str(Path(latentdiff.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {k: v for k, v in os.environ.items() if k not in own} | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(out)], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return [torch.load(out.with_suffix(f".{rank}"), weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", ["plain", "batch_norm", "cut", "codebook", "stage_two", "stage_two_cut"])
def test_weights_and_logs_are_those_of_one_process(two, tmp_path, name):
    script = load()
    make = script.fixtures()
    build = script.scenarios(make)[name]
    module = build()
    module.micro_batch = None
    expected = script.train(make, name, module, 0, 1, devices=1, **script.settings(tmp_path))
    before = build().state_dict()
    assert any(not torch.equal(value, expected[key]) for key, value in before.items())
    if name.startswith("stage_two"):
        assert {"train/loss_t0", "train/loss_t3", "val/loss", "val/loss_v", "val/loss_v_t0"} <= expected.keys()
    for rank in two:
        found = rank[name]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}")


def test_all_ranks_stop_with_the_same_error(two):
    first, second = (rank["spoilt"] for rank in two)
    assert first == second
    assert first.startswith("batch 2 (counted from 0): nll (samples 2-3): not finite")

"""Two processes over gloo, by DDP or FSDP2, end with what one process ends with, from the same global batches."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import latentdiff
from latentdiff.checkpoint import store
from latentdiff.training.callbacks.checkpoints import Checkpoints

SCRIPT = Path(__file__).with_name("two_ranks.py")


def load():
    spec = importlib.util.spec_from_file_location("two_ranks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(out: Path, *arguments: str) -> list[dict]:
    """What the two ranks of one run of the script wrote."""
    own = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    path = os.pathsep.join([str(Path(latentdiff.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {k: v for k, v in os.environ.items() if k not in own} | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(out), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return [torch.load(out.with_suffix(f".{rank}"), weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def one(folder):
    """A checkpoint of one process after three batches, and the weights that it has after six."""
    script = load()
    make = script.fixtures()
    with script.float64():
        module = script.sharded_scenarios(make)["muon"]().double()
        options = script.checkpointing(folder)
        trainer = script.fit(make, module, [0, 1, 2], 0, 1, Checkpoints(run_dir=str(folder)), devices=1, **options)
        trainer.save_checkpoint(folder / "one")
        straight = script.sharded_scenarios(make)["muon"]().double()
        script.fit(make, straight, range(6), 0, 1, devices=1, **script.checkpointing(folder))
    return straight.state_dict()


@pytest.fixture(scope="module")
def two(folder, one):
    return run(folder / "results")


def assert_as_one_process(two, name, folder, *, sharded, batches=None):
    script = load()
    make = script.fixtures()
    build = (script.sharded_scenarios if sharded else script.scenarios)(make)[name]
    module = build()
    module.micro_batch = None
    train, batches = (script.train_wide, batches or 6) if sharded else (script.train, batches)
    expected = train(make, name, module, 0, 1, batches, devices=1, **script.settings(folder))
    before = build().state_dict()
    assert any(not torch.equal(torch.as_tensor(value), expected[key]) for key, value in before.items())
    if name.startswith("stage_two"):
        assert {"train/loss_t0", "train/loss_t3", "val/loss", "val/loss_v", "val/loss_v_t0"} <= expected.keys()
    for rank in two[:1] if sharded else two:
        found = rank[f"sharded {name}" if sharded else name]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", ["plain", "batch_norm", "cut", "codebook", "stage_two", "stage_two_cut"])
def test_weights_and_logs_are_those_of_one_process(two, tmp_path, name):
    assert_as_one_process(two, name, tmp_path, sharded=False)


@pytest.mark.parametrize("name", ["plain", "cut", "codebook", "stage_two", "muon"])
def test_sharded_weights_and_logs_are_those_of_one_process(two, tmp_path, name):
    assert_as_one_process(two, name, tmp_path, sharded=True)


@pytest.mark.slow
def test_fifty_batches(tmp_path):
    ranks = run(tmp_path / "long", "50")
    for name in ("plain", "stage_two"):
        for sharded in (False, True):
            assert_as_one_process(ranks, name, tmp_path, sharded=sharded, batches=50)


@pytest.mark.parametrize("name", ["first", "sharded first"])
def test_first_loss_in_float32(two, tmp_path, name):
    script = load()
    expected = script.first_losses(script.fixtures(), 0, 1, tmp_path)
    assert two[0][name] == two[1][name] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("part", ["model", "ema"])
def test_sharded_ranks_save_the_very_weights_that_they_loaded(two, folder, part):
    before, after = (store.load_weights(folder / name, part) for name in ("one", "two"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_sharded_ranks_save_the_very_optimizer_state_that_they_loaded(two, folder):
    (before,), (after,) = (store.load_train_state(folder / name)["optimizer_states"] for name in ("one", "two"))
    assert before["param_groups"] == after["param_groups"]
    assert before["state"].keys() == after["state"].keys()
    for number, values in before["state"].items():
        assert values.keys() == after["state"][number].keys()
        assert all(torch.equal(value, after["state"][number][key]) for key, value in values.items())


def test_one_process_and_two_sharded_ones_go_on_from_each_other(two, one, folder):
    """Three batches in one process, three more in two: the weights of six in one. Then one process goes on."""
    after = {**store.load_weights(folder / "three", "model"), **store.load_weights(folder / "three", "ema")}
    for key, value in after.items():
        torch.testing.assert_close(value, one[key], rtol=1e-9, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}")
    script = load()
    make = script.fixtures()
    with script.float64():
        module = script.sharded_scenarios(make)["muon"]().double()
        options = script.checkpointing(folder)
        checkpoints = Checkpoints(run_dir=str(folder))
        script.fit(make, module, [], 0, 1, checkpoints, resume=folder / "three", devices=1, **options)
    assert module.counters.batches_seen == 6
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in after.items())


def test_all_ranks_stop_with_the_same_error(two):
    first, second = (rank["spoilt"] for rank in two)
    assert first.replace("rank-0", "rank-1") == second
    assert first.startswith("batch 2 (counted from 0): nll (samples 2-3): not finite")

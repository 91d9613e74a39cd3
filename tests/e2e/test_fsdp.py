"""FSDP2 in two processes, or two nodes, gives what one process gives, and their checkpoints are each other's."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from latentdiff.checkpoint import store

SCRIPT = Path(__file__).resolve().parents[2] / "train.py"


def assert_close(ours: list[dict], theirs: list[dict]) -> None:
    """Sums are taken in another order."""
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for one, two in zip(ours, theirs):
        assert one == pytest.approx(two, rel=1e-4, abs=5e-5)


def done(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=800)
    assert process.returncode == 0, (out, err)
    return out


@pytest.fixture(params=["stage_one", "stage_two"])
def command(request, programs):
    # Adam's epsilon: rounding in a gradient that is next to nothing must not become a whole step.
    constant = ("optim=adamw", "optim.lr=1.0e-3", "+optim.optimizer.eps=1.0e-3")
    command = (*getattr(programs, request.param), *constant)
    if request.param == "stage_one":
        return command
    # the embedded experiment's law of t depends on max_batches
    first = request.getfixturevalue("autoencoder")
    snapshots = "task.power_ema={_target_: latentdiff.training.power_ema.PowerEma, _partial_: true}"
    return (*command, f"first_stage.checkpoint={first}", "diffusion=rectified_flow", snapshots)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_sharded_processes_train_as_one(programs, command, metrics, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    programs.done("train", *command, "max_batches=8", f"run_dir={one}")
    out = done(programs.start("train", *command, "trainer=fsdp_cpu", f"run_dir={two}"))
    assert out.count(f"run directory: {two}") == 1
    assert_close(metrics(two), metrics(one)[: len(metrics(two))])
    assert store.read_manifest(two / "checkpoints" / "last").world_size == 2

    # One process goes on, and then two again.
    programs.done("train", *command, "max_batches=6", f"run_dir={two}")
    done(programs.start("train", *command, "trainer=fsdp_cpu", "max_batches=8", f"run_dir={two}"))
    assert_close(metrics(two), metrics(one))
    for part in ("model", "ema"):
        ours, theirs = (store.load_weights(folder / "checkpoints" / "last", part) for folder in (one, two))
        assert {n: (v.shape, v.dtype) for n, v in ours.items()} == {n: (v.shape, v.dtype) for n, v in theirs.items()}
    grids = {file.relative_to(one) for file in one.glob("*/batch-*") if file.parent.name != "checkpoints"}
    assert grids
    assert grids <= {file.relative_to(two) for file in two.glob("*/batch-*")}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def torchrun(node: int, port: int) -> tuple[list[str], dict[str, str]]:
    """Command and environment of node ``node`` of two with a process each."""
    where = [f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"]
    return [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *where], {}


def srun(node: int, port: int) -> tuple[list[str], dict[str, str]]:
    names = {"JOB_ID": 4711, "JOB_NAME": "train", "STEP_ID": 0, "NTASKS": 2, "NTASKS_PER_NODE": 1, "NNODES": 2}
    names |= {"PROCID": node, "LOCALID": 0, "NODEID": node}
    given = {f"SLURM_{name}": str(value) for name, value in names.items()}
    return [sys.executable], given | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("launcher", "trainer"), [(torchrun, "ddp_cpu"), (srun, "fsdp_cpu")])
def test_two_nodes_train_as_one_and_only_the_first_speaks(
    programs, metrics, tmp_path: Path, launcher, trainer: str
) -> None:
    command = (*programs.stage_one, "optim=adamw", "+optim.optimizer.eps=1.0e-3", f"paths.data={tmp_path / 'data'}")
    nodes, port = [], free_port()
    for node in (0, 1):
        start, given = launcher(node, port)
        ours = ("trainer.devices=1", "+trainer.num_nodes=2", f"trainer={trainer}", f"paths.outputs={tmp_path / 'out'}")
        folder = () if launcher is srun else (f"run_dir={tmp_path / 'out' / 'ae_kl' / 'mine'}",)
        nodes.append(
            subprocess.Popen(
                [*start, str(SCRIPT), *programs._merged(*command, *ours, *folder)],
                env=programs.environment | given,
                cwd=tmp_path,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    first, second = (done(process) for process in nodes)
    assert first.count("run directory:") == 1
    assert "batch 4:" in first
    assert not second.strip()
    (run_dir,) = (tmp_path / "out" / "ae_kl").iterdir()
    programs.done("train", *command, f"run_dir={tmp_path / 'one'}")
    assert_close(metrics(run_dir), metrics(tmp_path / "one"))

"""A dry run of 64 processes on 8 nodes: their environment, their ranks and what each of them reads."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from latentdiff.config.errors import InputError
from latentdiff.data.datamodule import DataModule
from latentdiff.data.plan import BatchPlan, rank_slice
from latentdiff.data.shards import write_shards
from latentdiff.data.sources import ShardSource

NODES, PER_NODE = 8, 8
RANKS = NODES * PER_NODE

OTHERS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS")


def torchrun(node: int, local: int) -> dict[str, int]:
    """What torchrun sets, of what is read."""
    return {"RANK": node * PER_NODE + local, "LOCAL_RANK": local, "GROUP_RANK": node, "WORLD_SIZE": RANKS}


def srun(node: int, local: int) -> dict[str, int]:
    """What ``srun --nodes=8 --ntasks-per-node=8`` sets, of what is read."""
    return {
        "SLURM_PROCID": node * PER_NODE + local,
        "SLURM_LOCALID": local,
        "SLURM_NODEID": node,
        "SLURM_NTASKS": RANKS,
        "SLURM_NTASKS_PER_NODE": PER_NODE,
        "SLURM_NNODES": NODES,
        "SLURM_JOB_ID": 4711,
        "SLURM_JOB_NAME": "train",
        "SLURM_STEP_ID": 0,
    }


@pytest.fixture(params=[(torchrun, TorchElasticEnvironment), (srun, SLURMEnvironment)], ids=["torchrun", "srun"])
def processes(request, monkeypatch):
    """Rank and world size of every process, as Lightning reads them."""
    variables, environment = request.param
    found = []
    for name in OTHERS:
        monkeypatch.delenv(name, raising=False)
    for node in range(NODES):
        for local in range(PER_NODE):
            for name, value in variables(node, local).items():
                monkeypatch.setenv(name, str(value))
            cluster = environment()
            cluster.validate_settings(num_devices=PER_NODE, num_nodes=NODES)
            assert (cluster.node_rank(), cluster.local_rank()) == (node, local)
            found.append((cluster.global_rank(), cluster.world_size()))
    return found


@pytest.fixture
def source(tmp_path, samples):
    write_shards(samples(300), tmp_path / "set", 90)
    return ShardSource(train=str(tmp_path / "set"))


def loader(source, rank, ranks, global_batch=128):
    data = DataModule(source=source, image_size=8, global_batch=global_batch, seed=0, num_workers=0, flip=True)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks)
    return data.train_dataloader()


def test_every_sample_once_per_epoch_in_equal_batches(processes, source):
    assert processes == [(rank, RANKS) for rank in range(RANKS)]
    (one,) = [list(loader(source, 0, 1))]
    assert [len(batch) for batch in one] == [128, 128]  # an epoch: 300 samples, of which 44 stay for another
    shares = [list(loader(source, *process)) for process in processes]
    assert {len(batch) for share in shares for batch in share} == {128 // RANKS}
    for number, batch in enumerate(one):
        keys = [key for share in shares for key in share[number].keys]
        assert keys == batch.keys
        assert [share[number].start for share in shares] == list(range(0, 128, 2))
    assert len({key for batch in one for key in batch.keys}) == 256


def test_an_epoch_of_a_large_set():
    samples, batch = 100_000, 2048
    plan = BatchPlan(samples, batch, seed=0)
    seen = [plan.indices(number) for number in range(plan.batches_per_epoch)]
    shares = [[indices[rank_slice(batch, rank, RANKS)] for indices in seen] for rank in range(RANKS)]
    assert {len(part) for share in shares for part in share} == {batch // RANKS}
    everything = [index for share in shares for part in share for index in part]
    assert len(everything) == len(set(everything)) == samples // batch * batch


def test_shares_that_are_not_equal_are_refused(source):
    with pytest.raises(InputError, match="global_batch=100 cannot be shared equally by 64 processes"):
        loader(source, 3, RANKS, global_batch=100)

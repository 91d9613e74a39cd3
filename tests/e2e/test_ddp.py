"""Two processes give what one process gives: the same samples in the same global batches, the same losses."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from latentdiff.checkpoint import store
from latentdiff.config.instantiate import build
from latentdiff.data.datamodule import DataModule


def train_in_two_processes(programs, command: tuple[str, ...], run_dir: Path) -> None:
    process = programs.start("train", *command, "trainer=ddp_cpu", f"run_dir={run_dir}")
    out, err = process.communicate(timeout=800)
    assert process.returncode == 0, (out, err)
    assert out.count(f"run directory: {run_dir}") == 1


def assert_close(ours: list[dict], theirs: list[dict]) -> None:
    """Sums are taken in another order, and Muon's bfloat16 makes more of it."""
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for one, two in zip(ours, theirs):
        assert one == pytest.approx(two, rel=1e-4, abs=5e-5)


def keys(run_dir: Path, ranks: int, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Sample keys of every global batch, as the ranks of this run get them."""
    batches: list[list[str]] = []
    for rank in range(ranks):
        monkeypatch.setattr(DataModule, "_rank_and_ranks", lambda self, rank=rank: (rank, ranks))
        data = build(yaml.safe_load((run_dir / "config.yaml").read_text())["data"]["module"])
        for number, batch in enumerate(data.train_dataloader()):
            batches[number:] = [[*(batches[number] if rank else []), *batch.keys], *batches[number + 1 :]]
    return batches


@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", ["stage_one", pytest.param("stage_two", marks=pytest.mark.slow)])
def test_two_processes_train_as_one(
    programs, request, metrics, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: str
) -> None:
    # Adam's epsilon: rounding in a gradient that is next to nothing must not become a whole step.
    constant = ("optim=adamw", "optim.lr=1.0e-3", "+optim.optimizer.eps=1.0e-3")
    command = (*getattr(programs, stage), *constant)
    if stage == "stage_two":
        # the embedded experiment's law of t depends on max_batches
        first = request.getfixturevalue("autoencoder")
        command = (*command, f"first_stage.checkpoint={first}", "diffusion=rectified_flow")
    one, two = tmp_path / "one", tmp_path / "two"
    programs.done("train", *command, "max_batches=6", f"run_dir={one}")
    train_in_two_processes(programs, command, two)
    assert_close(metrics(two), metrics(one)[: len(metrics(two))])
    last = two / "checkpoints" / "last"
    assert store.verify(last).counters == {"batches_seen": 4, "images_seen": 32}
    assert store.read_manifest(last).world_size == 2
    assert store.load_weights(last).keys() == store.load_weights(one / "checkpoints" / "last").keys()

    # What two processes saved goes on in one process.
    programs.done("train", *command, "max_batches=6", f"run_dir={two}")
    assert_close(metrics(two), metrics(one))
    assert keys(two, 2, monkeypatch) == keys(one, 1, monkeypatch)

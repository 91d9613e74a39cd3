"""The same numbers on any number of processes, after a kill and for another chunk size."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentdiff.checkpoint import store
from latentdiff.evaluation.chunks import ChunkFolder
from latentdiff.generation.pipeline import LatentPipeline

COUNT = ("num_images=13", "batch_size=3", "neighbours=2", "neighbour_images=16")
"""13 is a multiple of nothing here."""
MEASURED = ("metrics=[frechet,shapes_text]", "bound=true", "sampler.steps=3")


def found(run_dir: Path) -> dict:
    return json.loads((run_dir / "results.json").read_text())


def assert_same(one: Path, other: Path) -> None:
    """Every bit of every image and number, and how they were obtained."""
    one, other = found(one), found(other)
    assert one["card"]["observed"] == other["card"]["observed"]
    for part in ("results", "controls"):
        assert one.get(part) == other.get(part)
    assert one["card"]["protocol"] == other["card"]["protocol"]
    assert one["card"]["model"] == other["card"]["model"]


def in_two_processes(programs, *command: str) -> None:
    """Of which the first starts the other."""
    process = programs.start("evaluate", *command, "trainer=ddp_cpu")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, (out, err)
    assert out.count("results: ") == 1
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def whole(programs, ldm: Path, tmp_path_factory) -> Path:
    """Run directory of a complete evaluation of stage two in one process."""
    run_dir = tmp_path_factory.mktemp("whole")
    command = (*programs.use, f"checkpoint={ldm}", *COUNT, *MEASURED)
    programs.done("evaluate", *command, "save_samples=npz", f"run_dir={run_dir}")
    return run_dir


def test_a_run_directory_holds_the_evaluation_alone(whole: Path) -> None:
    made = {"config.yaml", "environment.json", "overrides.yaml"}
    assert {path.name for path in whole.iterdir()} == {*made, "grid.png", "report.html", "results.json", "samples.npz"}
    assert json.loads((whole / "environment.json").read_text())["program"] == "evaluate"
    results = found(whole)
    assert set(results["results"]) == {"captions", "frechet", "bound"}
    assert results["card"]["observed"]["duplicates"] == 0


def test_two_processes_give_what_one_gives(
    programs, ldm: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started as a launcher starts them."""
    command = (*programs.use, f"checkpoint={ldm}", *COUNT, *MEASURED, "save_samples=npz")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    ranks = []
    for rank in range(2):
        for name, value in {**group, "NODE_RANK": "0", "LOCAL_RANK": str(rank)}.items():
            monkeypatch.setitem(programs.environment, name, value)
        ranks.append(programs.start("evaluate", *command, "trainer=ddp_cpu", f"run_dir={tmp_path}"))
    said = [process.communicate(timeout=300) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    assert [out.count("results: ") for out, _ in said] == [1, 0]
    assert_same(whole, tmp_path)
    assert found(tmp_path)["card"]["environment"]["world_size"] == 2
    for name in ("samples.npz", "grid.png"):
        assert (whole / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.slow
def test_two_processes_measure_a_first_stage_as_one(programs, autoencoder: Path, tmp_path: Path) -> None:
    command = (*programs.use, f"checkpoint={autoencoder}", *COUNT)
    programs.done("evaluate", *command, f"run_dir={tmp_path / 'one'}")
    in_two_processes(programs, *command, f"run_dir={tmp_path / 'two'}")
    assert_same(tmp_path / "one", tmp_path / "two")


def killed(programs, after: int, *command: str) -> int:
    """Runs the command in a child process that is killed while it writes its ``after``-th chunk; its exit code."""
    child = os.fork()
    if child == 0:
        write, left = ChunkFolder.write, [after]

        def counted(self, *columns):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, *columns)

        ChunkFolder.write = counted
        programs("evaluate", *command)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    "after", [pytest.param(2, marks=pytest.mark.slow), 8, pytest.param(13, marks=pytest.mark.slow)]
)
def test_a_killed_evaluation_goes_on(
    programs, ldm: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Five chunks of real images, five of the model's, and then those of the controls."""
    command = (*programs.use, f"checkpoint={ldm}", *COUNT, *MEASURED, "save_samples=npz", f"run_dir={tmp_path}")
    assert killed(programs, after, *command) == -signal.SIGKILL
    done = len(list((tmp_path / "chunks" / "images").glob("*.npz")))
    assert done == min(5, max(0, after - 6))
    assert not (tmp_path / "results.json").exists()
    made = []
    generate = LatentPipeline.__call__

    def counted(self, batch, seeds, **options):
        made.extend(seeds)
        return generate(self, batch, seeds, **options)

    monkeypatch.setattr(LatentPipeline, "__call__", counted)
    programs.done("evaluate", *command)
    assert made == list(range(3 * done, 13))
    assert_same(whole, tmp_path)
    assert (whole / "samples.npz").read_bytes() == (tmp_path / "samples.npz").read_bytes()


def test_unfinished_work_belongs_to_one_protocol(programs, ldm: Path, tmp_path: Path) -> None:
    command = (*programs.use, f"checkpoint={ldm}", *COUNT, "metrics=frechet", f"run_dir={tmp_path}")
    assert killed(programs, 8, *command) == -signal.SIGKILL
    for change, message in (
        ("guidance.scale=7.5", r"protocol\.generation\.guidance\.scale = .*, now it is 7\.5"),
        ("weights=model", r'model\.weights = "ema", now it is "model"'),
    ):
        outcome = programs("evaluate", *command, change)
        assert outcome.code == 2, outcome
        assert re.search(f"unfinished work of an evaluation with .*{message}", outcome.err), outcome.err


@pytest.mark.slow
def test_another_chunk_size_changes_rounding_at_most(programs, ldm: Path, whole: Path, tmp_path: Path) -> None:
    other = (*COUNT, *MEASURED, "batch_size=5", "save_samples=npz", "controls=false", "neighbours=0")
    programs.done("evaluate", *programs.use, f"checkpoint={ldm}", *other, f"run_dir={tmp_path}")
    own, others = (np.load(folder / "samples.npz")["arr_0"].astype(int) for folder in (whole, tmp_path))
    apart = np.abs(own - others)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3
    for name, number in found(whole)["results"]["frechet"].items():
        assert found(tmp_path)["results"]["frechet"][name] == pytest.approx(number, rel=1e-3)
    bound = [found(folder)["results"]["bound"]["bits_per_dim"] for folder in (whole, tmp_path)]
    assert bound[0] == pytest.approx(bound[1], rel=1e-3)


def test_trained_weights_and_prompts(programs, ldm: Path, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\na blue ring\na red circle\n", encoding="utf-8")
    own = (f"prompts={tmp_path / 'prompts.txt'}", "num_images=3", "metrics=frechet", "save_samples=png")
    command = (*programs.use, f"checkpoint={ldm}", *own)
    for weights in ("ema", "model"):
        programs.done("evaluate", *command, f"weights={weights}", f"run_dir={tmp_path / weights}")
    cards = [found(tmp_path / weights)["card"] for weights in ("ema", "model")]
    assert [card["model"]["weights"] for card in cards] == ["ema", "model"]
    assert cards[0]["observed"]["images_sha256"] != cards[1]["observed"]["images_sha256"]
    assert cards[0]["protocol"]["conditions"]["lines"] == 3
    for weights in ("ema", "model"):
        assert [path.name for path in sorted((tmp_path / weights / "samples").iterdir())] == [
            f"{i:06d}.png" for i in range(3)
        ]
    prompted = np.asarray(Image.open(tmp_path / "ema" / "samples" / "000000.png"))
    assert prompted.shape == (16, 16, 3)
    assert set(found(tmp_path / "ema")["controls"]) == {"reconstructions", "gaussian", "training_images"}
    assert store.read_manifest(ldm / "checkpoints" / "last").digest == cards[0]["model"]["digest"]


def test_equal_images_are_no_result(programs, ldm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = LatentPipeline.__call__
    monkeypatch.setattr(
        LatentPipeline,
        "__call__",
        lambda self, batch, seeds: generate(self, batch, seeds)[:1].repeat(len(seeds), 1, 1, 1),
    )
    command = (*programs.use, f"checkpoint={ldm}", *COUNT, "metrics=frechet", f"run_dir={tmp_path}")
    outcome = programs("evaluate", *command)
    assert outcome.code == 2
    assert "max_duplicates: 8 of 13 images are equal to another" in outcome.err
    assert not (tmp_path / "results.json").exists()
    monkeypatch.setattr(LatentPipeline, "__call__", None)
    outcome = programs("evaluate", *command, "max_duplicates=1")
    assert outcome.code == 0, outcome
    assert "warning: 8 of 13 images are equal to another" in outcome.err
    assert found(tmp_path)["card"]["observed"]["duplicates"] == 8

"""Grids of evaluations, repeated ones, and metrics while training."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from latentdiff.evaluation.baselines import RealImages

POWER_EMA = "task.power_ema={_target_: latentdiff.training.power_ema.PowerEma, _partial_: true}"
SMALL = ("num_images=9", "batch_size=4", "neighbours=0")
GRID = ("sweep.guidance=[1,2]", "sweep.sampler=[ddpm]", "sweep.steps=[2]")
FD = "frechet.fd_randconv-v1_n9"
ONLINE = (
    "callbacks.online.every=2",
    "callbacks.online.images=9",
    "callbacks.online.batch_size=4",
)


def found(place: Path) -> dict:
    return json.loads((place / "results.json").read_text())


def rows(run_dir: Path) -> dict[str, dict]:
    with (run_dir / "sweep.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_a_grid_is_its_single_evaluations_and_goes_on(programs, ldm: Path, tmp_path: Path, monkeypatch) -> None:
    looks = []
    plain = RealImages.__call__
    monkeypatch.setattr(RealImages, "__call__", lambda self, *given: looks.append(1) or plain(self, *given))
    grid = (*programs.use, *SMALL, *GRID, f"checkpoint={ldm}", f"run_dir={tmp_path / 'grid'}")
    out = programs.done("evaluate", *grid).out
    assert len(looks) == 2 * 3  # chunks of the reference, and of the training images that one point is compared with
    single = ("sampler=ddpm", "sampler.steps=2", "guidance.scale=2.0", "controls=false")
    programs.done("evaluate", *programs.use, *SMALL, *single, f"checkpoint={ldm}", f"run_dir={tmp_path / 'one'}")
    name, one = "sampler-ddpm_steps-2_guidance-2", found(tmp_path / "one")
    point = found(tmp_path / "grid" / "points" / name)
    assert point["results"] == one["results"]
    assert point["card"]["protocol"] == one["card"]["protocol"]
    assert point["card"]["observed"] == one["card"]["observed"]
    table = rows(tmp_path / "grid")
    assert list(table) == [f"sampler-ddpm_steps-2_guidance-{scale}" for scale in (1, 2)]
    assert float(table[name][FD]) == one["results"]["frechet"]["fd_randconv-v1_n9"]
    assert out.count(" *") >= 3
    assert (tmp_path / "grid" / "curves" / f"{FD}_over_guidance.svg").is_file()
    assert "sampler ddpm" in (tmp_path / "grid" / "curves" / f"{FD}_over_guidance.svg").read_text()
    assert not (tmp_path / "grid" / "chunks").exists()

    text = (tmp_path / "grid" / "sweep.csv").read_text()
    other = tmp_path / "grid" / "points" / "sampler-ddpm_steps-2_guidance-1" / "results.json"
    before = other.stat().st_mtime_ns
    (tmp_path / "grid" / "points" / name / "results.json").unlink()  # as if it had been killed there
    programs.done("evaluate", *grid)
    assert (tmp_path / "grid" / "sweep.csv").read_text() == text
    assert other.stat().st_mtime_ns == before
    grown = ("sweep.guidance=[0.5,1,2]", "neighbours=1", "max_duplicates=1")
    refused = programs("evaluate", *grid, *grown, "seed=1")
    assert refused.code == 2
    assert "protocol.seeds.base: 0 | 1" in refused.err
    assert not (tmp_path / "grid" / "points" / "sampler-ddpm_steps-2_guidance-0.5").exists()
    assert not (tmp_path / "grid" / "chunks").exists()
    (other.parent / "results.json").rename(other.parent / "aside")  # the one with the controls, killed before its end
    assert "controls" in json.loads((other.parent / "aside").read_text())
    programs.done("evaluate", *grid, *grown)
    assert "controls" in found(other.parent)
    assert "controls" not in found(other.parent.with_name("sampler-ddpm_steps-2_guidance-0.5"))
    assert list(rows(tmp_path / "grid")) == [f"sampler-ddpm_steps-2_guidance-{scale}" for scale in ("0.5", "1", "2")]
    fewer = ("data=shapes", "data.size=16", "data.module.source.train_samples=64", "data.module.source.val_samples=15")
    refused = programs("evaluate", *grid, *fewer)
    assert refused.code == 2
    assert "protocol.conditions.dataset." in refused.err


@pytest.fixture(scope="module")
def watched(programs, autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of a training with averages of any length and metrics on the way."""
    run = tmp_path_factory.mktemp("watched")
    constant = ("optim=adamw", "diffusion=rectified_flow", f"first_stage.checkpoint={autoencoder}")
    programs.done("train", *programs.stage_two, *constant, *ONLINE, POWER_EMA, f"run_dir={run}")
    return run


@pytest.mark.slow
def test_lengths_of_averages_are_swept_over(programs, watched: Path, tmp_path: Path) -> None:
    sweep = ("sweep.ema_length=[0.05,0.1]", "controls=false", f"checkpoint={watched}", f"run_dir={tmp_path}")
    programs.done("evaluate", *programs.use, *SMALL, *sweep)
    points = [found(tmp_path / "points" / f"ema_length-{length}") for length in ("0.05", "0.1")]
    assert [point["card"]["model"]["ema"]["length"] for point in points] == [0.05, 0.1]
    assert points[0]["card"]["observed"]["images_sha256"] != points[1]["card"]["observed"]["images_sha256"]
    assert not (tmp_path / "curves").exists()  # nothing to draw over


def test_repeats_are_evaluations_of_other_seeds(programs, ldm: Path, tmp_path: Path) -> None:
    common = (*programs.use, *SMALL, f"checkpoint={ldm}", "controls=false")
    programs.done("evaluate", *common, "repeats=3", "seed=4", f"run_dir={tmp_path / 'all'}")
    programs.done("evaluate", *common, "seed=5", f"run_dir={tmp_path / 'one'}")
    whole, one = found(tmp_path / "all"), found(tmp_path / "one")
    repeats = whole["repeats"]
    assert (repeats["count"], repeats["seeds"]) == (3, [4, 5, 6])
    assert repeats["each"][1] == {"seed": 5, "results": one["results"], "observed": one["card"]["observed"]}
    assert len({each["observed"]["images_sha256"] for each in repeats["each"]}) == 3
    values = [each["results"]["frechet"]["fd_randconv-v1_n9"] for each in repeats["each"]]
    mean = sum(values) / 3
    assert whole["results"]["frechet"]["fd_randconv-v1_n9"] == pytest.approx(mean, rel=1e-12)
    assert repeats["min"]["frechet"]["fd_randconv-v1_n9"] == min(values)
    spread = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    assert repeats["sd"]["frechet"]["fd_randconv-v1_n9"] == pytest.approx(spread, rel=1e-9)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sweep.sampler=[eulr]", "there is no 'sampler/eulr'; did you mean euler"),
        ("sweep.guidance=[]", "sweep.guidance: the list is empty"),
        ("sweep.guidance=[1,nan]", "sweep.guidance: expected finite numbers, got nan"),
        ("sweep.ema_length=[inf]", "sweep.ema_length: expected finite numbers, got inf"),
        ("guidance.scale=nan", "guidance.scale: expected a finite number, got nan"),
        ("sweep.steps=[2,2]", "sweep.steps: 2 is given twice"),
        ("sweep.steps=[0]", "sweep: steps-0: sampler.steps: expected a whole number of at least 1"),
        ("sweep.ema_length=[0.1]", "trained without power-function averages"),
    ],
)
def test_values_that_cannot_be_used_are_refused(refused, programs, ldm: Path, tmp_path, override, message) -> None:
    refused("evaluate", [*programs.use, *SMALL, override, f"checkpoint={ldm}", f"run_dir={tmp_path}"], message)


def test_a_first_stage_has_nothing_to_sweep_or_repeat(refused, programs, autoencoder: Path, tmp_path: Path) -> None:
    command = [*programs.use, *SMALL, f"checkpoint={autoencoder}", f"run_dir={tmp_path}"]
    refused("evaluate", [*command, "sweep.steps=[2]"], "is of the kind autoencoder")
    assert "nothing here depends on a seed" in programs("evaluate", *command, "repeats=2").err


def test_the_last_number_of_a_training_is_that_of_its_evaluation(programs, watched: Path, metrics, tmp_path) -> None:
    """Averaged weights, samples, seeds and references are the same; so is the sampler, named by the checkpoint."""
    lines = [line for line in metrics(watched) if "online/fd_randconv-v1_0.009k" in line]
    assert [line["batches_seen"] for line in lines] == [2, 4]
    programs.done("evaluate", *programs.use, *SMALL, f"checkpoint={watched}", "controls=false", f"run_dir={tmp_path}")
    assert lines[-1]["online/fd_randconv-v1_0.009k"] == found(tmp_path)["results"]["frechet"]["fd_randconv-v1_n9"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("trainer", ["ddp_cpu", "fsdp_cpu"])
def test_two_processes_measure_as_one(programs, autoencoder: Path, metrics, tmp_path: Path, trainer: str) -> None:
    constant = ("optim=adamw", "optim.lr=1.0e-3", "+optim.optimizer.eps=1.0e-3", "diffusion=rectified_flow")
    command = (*programs.stage_two, *constant, *ONLINE, f"first_stage.checkpoint={autoencoder}")
    programs.done("train", *command, f"run_dir={tmp_path / 'one'}")
    process = programs.start("train", *command, f"trainer={trainer}", f"run_dir={tmp_path / 'two'}")
    out, err = process.communicate(timeout=800)
    assert process.returncode == 0, (out, err)
    one, two = (
        [line for line in metrics(tmp_path / name) if any(key.startswith("online/") for key in line)]
        for name in ("one", "two")
    )
    assert [line["batches_seen"] for line in two] == [2, 4]
    for mine, theirs in zip(
        one, two, strict=True
    ):  # the weights differ by rounding, an image by a level here and there
        assert mine == pytest.approx(theirs, rel=1e-3)

"""make results, with programs that write what the real ones would."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from latentdiff.app import results
from latentdiff.checkpoint import store

OWN = {
    "ldm_class": {"labels": {"accuracy": 0.925, "shuffled": {"accuracy": 0.2}}},
    "ldm_semantic": {"maps": {"miou": 0.81, "pixel_accuracy": 0.97}},
    "first_stage_1": {"reconstruction": {"psnr": 30.0, "ssim": 0.9}},
}


class Programs:
    """Stands in for the root scripts; notes what it was called with."""

    def __init__(self):
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, script: str, *overrides: str) -> None:
        self.calls.append((script, *overrides))
        given = dict(override.split("=", 1) for override in overrides)
        where = Path(given["run_dir"])
        if script == "train.py":
            batches = int(given.get("max_batches", 10))
            save(where / "checkpoints/last", batches, "diffusion", {"path": "ae", "hash": "h"})
            (where / store.CONFIG).write_text("{}")
            return
        checkpoint = Path(given["checkpoint"])
        name = where.parent.name if where.name == "evaluation" else where.name
        stage_two = {"sampler": {"name": "Euler"}, "guidance": {"name": "ClassifierFree", "scale": 3.0}, "steps": 25}
        manifest = store.read_manifest(checkpoint)
        card = {
            "model": {"checkpoint": str(checkpoint), "digest": manifest.digest, **manifest.counters},
            "protocol": {
                "generation": {} if name.startswith("first") else stage_two,
                "samples": {"count": int(given.get("num_images", 500))},
            },
        }
        where.mkdir(parents=True)
        (where / "results.json").write_text(json.dumps({"results": OWN[name], "card": card}))


def save(path: Path, batches: int, kind: str, first_stage: dict | None = None) -> None:
    store.save(
        path,
        kind=kind,
        model={"weight": torch.zeros(1)},
        ema={"weight": torch.full((1,), float(batches))},
        config=json.dumps({"max_batches": batches}),
        counters={"batches_seen": batches, "images_seen": 64 * batches},
        first_stage=first_stage,
        extra={"seconds": 90.0},
    )


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``make(*arguments)``: the calls of the programs that ``make results`` needs."""
    monkeypatch.chdir(tmp_path)
    programs = Programs()
    monkeypatch.setattr(results, "run", programs)
    save(Path("ae"), 1000, "autoencoder")

    def run(*arguments: str) -> list[tuple[str, ...]]:
        monkeypatch.setattr(sys, "argv", ["results", *arguments])
        programs.calls.clear()
        assert results.main() == 0
        return list(programs.calls)

    return run


def test_every_experiment_is_trained_and_evaluated_and_the_first_stage_once(make, capsys) -> None:
    calls = make("ldm_class", "ldm_semantic", "max_batches=7", "trainer=cpu", "num_images=100", "metrics=frechet")
    train = ("max_batches=7", "trainer=cpu")
    evaluate = ("trainer=cpu", "num_images=100")
    home = "outputs/results"
    assert calls == [
        ("train.py", "experiment=ldm_class", f"run_dir={home}/ldm_class", *train),
        ("train.py", "experiment=ldm_semantic", f"run_dir={home}/ldm_semantic", *train),
        ("evaluate.py", "checkpoint=ae", f"run_dir={home}/first_stage_1", *evaluate),
        *[
            (
                "evaluate.py",
                f"checkpoint={home}/{name}/checkpoints/last",
                f"run_dir={home}/{name}/evaluation",
                *evaluate,
                "metrics=frechet",
            )
            for name in ("ldm_class", "ldm_semantic")
        ],
    ]
    text = Path(home, "results.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "| ldm_class | shape of the class is there | 0.925 | 0.200 |" in text
    assert "| ldm_semantic | mean IoU with the map | 0.810 |  |" in text
    assert "| first stage | PSNR, dB | 30.00 |  |" in text
    assert "| ldm_class | 7 | 1.5 | 100 | Euler, 25 steps, ClassifierFree 3.0 |" in text
    assert "| first stage | 1000 | 1.5 | 100 |  |" in text
    assert set(json.loads(Path(home, "results.json").read_text())) == {"first stage", "ldm_class", "ldm_semantic"}


def test_the_same_command_goes_on_and_does_nothing_twice(make) -> None:
    assert len(make("ldm_class")) == 3
    assert make("ldm_class") == []
    Path("outputs/results/ldm_class/evaluation/results.json").unlink()
    Path("outputs/results/ldm_class/evaluation/overrides.json").unlink()
    Path("outputs/results/ldm_class/evaluation").rmdir()
    assert [call[0] for call in make("ldm_class")] == ["evaluate.py"]


def test_an_evaluation_that_is_made_again_replaces_the_old_one(make) -> None:
    make("ldm_class")
    where = Path("outputs/results/ldm_class/evaluation")
    (where / "points").mkdir()
    assert [call[0] for call in make("ldm_class", "num_images=9")] == ["evaluate.py"] * 2
    assert sorted(path.name for path in where.iterdir()) == ["overrides.json", "results.json"]


def test_a_run_of_other_settings_is_not_passed_off_as_this_one(make, capsys) -> None:
    make("ldm_class", "max_batches=7")
    for overrides in (["max_batches=5"], ["max_batches=7", "sampler.steps=9"], []):
        sys.argv = ["results", "ldm_class", *overrides]
        assert results.main() == 2
        assert "was trained with ['max_batches=7']" in capsys.readouterr().err
    assert make("ldm_class", "max_batches=7") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ae_kl"], "'ae_kl' trains no second stage"),
        (["classifier"], "'classifier' trains no second stage"),
        (["ldm_clas"], "did you mean ldm_class"),
        (["ldm_class", "max_batches=abc"], "max_batches"),
        (["ldm_class", "sampler.stepps=3"], "sampler.stepps"),
    ],
)
def test_what_is_at_fault_is_refused_before_training(make, capsys, arguments, message) -> None:
    sys.argv = ["results", *arguments]
    assert results.main() == 2
    assert message in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_what_is_done_is_told_from_what_is_not(make) -> None:
    make("ldm_class", "max_batches=7")
    assert results.trained(Path("outputs/results/ldm_class"))
    assert not results.trained(Path("outputs/results/ldm_semantic"))
    last = Path("outputs/results/ldm_class/checkpoints/last")
    where = Path("outputs/results/ldm_class/evaluation")
    assert results.evaluated(last, where, [])
    assert not results.evaluated(last, where, ["num_images=10"])
    save(Path("other"), 9, "diffusion")
    assert not results.evaluated(Path("other"), where, [])

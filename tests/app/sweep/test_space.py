"""SPACE.yaml: what is read from it, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentdiff.app.cli import main
from latentdiff.app.sweep import devices as sweep_devices
from latentdiff.app.sweep.parameter import Choice, Range, Whole, read_parameter
from latentdiff.app.sweep.space import Pruner, read_space
from latentdiff.config.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
SPACE = """
overrides: [experiment=ldm_txt2img]
trial_overrides: [max_batches=40, validate_every=10]
space:
  optim.lr: {log: [1.0e-4, 1.0e-2]}
pruner: {median: {min_images: 640}}
"""


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweep").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_spaces_that_come_along_are_whole(path: Path) -> None:
    space = read_space(path, ROOT / "configs", [], None)
    assert space.sampler != "grid" or len(space.all_values()) == space.trials
    assert path.stem in space.overrides[0]


def read(text: str, tmp_path: Path, overrides: list[str] | None = None):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return read_space(path, ROOT / "configs", overrides or [], None)


def test_a_space(tmp_path: Path) -> None:
    space = read(SPACE, tmp_path, ["data.size=32"])
    assert space.overrides == ["experiment=ldm_txt2img", "data.size=32"]
    assert (space.objective, space.maximize, space.images) == ("val/loss_v", False, 40 * 64)
    assert space.pruner == Pruner("median", 640, 5)
    assert space.name == "ldm_txt2img"
    assert space.settings({"optim.lr": 0.00123456789}) == {"optim.lr": "0.00123457"}
    other = read(SPACE.partition("pruner")[0].replace("ldm_txt2img", "ae_kl") + "objective: val/ssim\n", tmp_path)
    assert (other.objective, other.maximize) == ("val/ssim", True)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("optim.lr", "optim.lrr", "did you mean optim.lr"),
        ("1.0e-2", "1.0e-5", "low < high"),
        ("1.0e-4", "-1.0", "above 0"),
        ("log", "lg", "did you mean log"),
        ("{log: [1.0e-4, 1.0e-2]}", "{choice: [0.1, true]}", "key optim.lr: expected float, got True"),
        ("pruner: {median", "pruner: {medain", "did you mean median"),
        ("min_images: 640", "min_image: 640", "did you mean min_images"),
        ("min_images: 640", "min_images: 2560", "is all that a trial sees"),
        ("validate_every=10", "validate_every=40", "validated at its end alone"),
        ("pruner:", "objective: val/los\npruner:", "did you mean val/loss"),
        ("pruner:", "objective: online/fid\npruner:", "callbacks.online.every"),
        ("pruner:", "sampler: grid\npruner:", "optim.lr: a grid goes through choice and int alone"),
        ("pruner:", "sampler: tep\npruner:", "did you mean tpe"),
        ("pruner:", "trails: 3\npruner:", "did you mean trials"),
        ("pruner:", "trials: 0\npruner:", "trials: expected a whole number"),
        ("pruner:", "direction: down\npruner:", "minimize or maximize"),
        ("max_batches=40", "max_batches=0", "max_batches: expected a whole number"),
        ("max_batches=40", "trainer.max_time=00:01:00:00", "trainer.max_time: a trial that it ends"),
        ("max_batches=40", "run_dir=x", "is the sweep's to give"),
        ("experiment=ldm_txt2img", "experiment=ldm_txt2im", "did you mean ldm_txt2img"),
        ("space:\n  optim.lr", "spaces:\n  optim.lr", "a mapping with `space`"),
    ],
)
def test_faults_are_named(tmp_path: Path, before: str, after: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(SPACE.replace(before, after), tmp_path)


def test_a_grid_has_all_its_combinations_unless_fewer_are_wanted(tmp_path: Path) -> None:
    text = "overrides: [experiment=ldm_txt2img]\nspace: {optim.lr: {choice: [0.1, 0.2, 0.3]}}\nsampler: grid\n"
    assert [read(text + line, tmp_path).trials for line in ("", "trials: 2\n", "trials: 9\n")] == [3, 2, 3]
    assert read(text.replace("grid", "random"), tmp_path).trials == 20


def test_trials_are_a_group_in_wandb_unless_they_have_one(tmp_path: Path) -> None:
    assert not read(SPACE, tmp_path).grouped
    assert read(SPACE, tmp_path, ["logger=wandb"]).grouped
    assert not read(SPACE, tmp_path, ["logger=wandb", "logger.wandb.group=mine"]).grouped


def test_the_command_has_all_options(tmp_path: Path, monkeypatch) -> None:
    given: dict = {}
    monkeypatch.setattr("latentdiff.app.sweep.search.search", lambda *args, **named: given.update(named) or 0)
    line = ["sweep", str(ROOT / "configs/sweep/ae_kl.yaml"), "--trials", "3", "--jobs", "2", "data.size=32"]
    assert main([*line, "--dir", "s"]) == 0
    assert given["command"].endswith("ae_kl.yaml --dir s --trials 3 --jobs 2 data.size=32")


def test_parameters() -> None:
    assert read_parameter("a", {"uniform": [0, 1]}) == Range(0.0, 1.0, False)
    assert read_parameter("a", {"int": [2, 9, 3]}) == Whole(2, 9, 3)
    assert Whole(2, 9, 3).values() == [2, 5, 8]
    choice = read_parameter("a", {"choice": ["x", True, None, 0.5, ["p", "q"]]})
    assert choice == Choice(("x", "true", "null", "0.5", "[p,q]"))
    for kind in ({"uniform": [1]}, {"int": [1.5, 3]}, {"int": [3, 1]}, {"choice": []}, {"choice": [1, 1]}, 3, {}):
        with pytest.raises(InputError, match=r"space\.a"):
            read_parameter("a", kind)


def test_a_value_never_leaves_its_range() -> None:
    assert Range(0.99999949, 0.99999951, False).text(0.9999995) in ("0.99999949", "0.99999951")


def test_gpus_are_shared_out(monkeypatch) -> None:
    monkeypatch.setattr(sweep_devices, "_visible", lambda: ["0", "1", "2", "3"])
    assert sweep_devices.shares(1) == [{}]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in sweep_devices.shares(2)] == ["0,2", "1,3"]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in sweep_devices.shares(5)] == ["0", "1", "2", "3", "0"]
    monkeypatch.setattr(sweep_devices, "_visible", list)
    assert sweep_devices.shares(2) == [{}, {}]


def test_the_verb_refuses(tmp_path: Path, capsys) -> None:
    for line, message in {
        ("nothing.yaml",): "no file 'nothing.yaml'",
        ("report",): "give the one folder",
        ("report", str(tmp_path)): "there is no sweep in",
        ("report", str(tmp_path), "--trials", "3"): "--trials is of a search",
        (str(ROOT / "configs/sweep/ae_kl.yaml"), "--jobs", "0"): "--jobs: expected at least 1",
        (str(ROOT / "configs/sweep/ae_kl.yaml"), "--objective", "x"): "stand in its file",
    }.items():
        assert main(["sweep", *line]) == 2
        assert message in capsys.readouterr().err

"""Every application from training to samples and numbers, on models of two batches: what each needs, and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from latentdiff.shapes.renderer import render, segmentation
from latentdiff.shapes.scene import sample_scene

SIZE = 16
GIVEN = {
    "ldm_class": ("label=[3,5]",),
    "ldm_uncond": (),
    "ldm_inpaint": ("image=IMAGE", "mask=MASK", "prompt=a red circle"),
    "ldm_superres": ("image=SMALL",),
    "ldm_semantic": ("map=MAP",),
    "ldm_text_semantic": ("map=MAP", "prompt=a red circle", "guidance=several", "guidance.scales.text=2.0"),
}
"""Experiment -> what sample.py needs for it."""
MEASURED = {
    "ldm_class": {"labels", "frechet"},
    "ldm_uncond": {"frechet"},
    "ldm_superres": {"captions", "frechet", "low_resolution"},
    "ldm_semantic": {"maps", "frechet"},
    "ldm_text_semantic": {"captions", "maps", "frechet"},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, scene = tmp_path_factory.mktemp("inputs"), sample_scene(0, 0)
    hole = np.zeros((SIZE, SIZE), np.uint8)
    hole[4:12, 4:12] = 255
    arrays = {
        "IMAGE": render(scene, SIZE),
        "MASK": hole,
        "SMALL": render(scene, SIZE // 4),
        "MAP": segmentation(scene, SIZE),
        "WIDE": np.zeros((SIZE, 2 * SIZE), np.uint8),
        "STRANGE": np.full((SIZE, SIZE), 9, np.uint8),
        "LARGE": render(scene, 2 * SIZE),
    }
    for name, array in arrays.items():
        Image.fromarray(array).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in arrays}


@pytest.fixture(scope="module")
def trained(programs, autoencoder: Path):
    """Name of an experiment -> its run directory, trained on first use."""
    found = {}

    def run_dir(name: str) -> Path:
        if name not in found:
            found[name] = programs.home / name
            first = (f"first_stage.checkpoint={autoencoder}", f"run_dir={found[name]}", "max_batches=2")
            small = ("conditioner.module.factor=4",) if name == "ldm_superres" else ()
            programs.done("train", f"experiment={name}", *programs.conditioned, *first, *small)
        return found[name]

    return run_dir


def with_files(overrides: tuple[str, ...], files: dict[str, Path]) -> list[str]:
    parts = [override.partition("=") for override in overrides]
    return [f"{key}={files.get(value, value)}" for key, _, value in parts]


@pytest.mark.parametrize("name", GIVEN)
def test_each_application_samples(programs, trained, files, tmp_path: Path, name: str) -> None:
    run = trained(name)
    programs.done(
        "sample",
        *programs.use,
        f"checkpoint={run}",
        "seeds=[0,1]",
        *with_files(GIVEN[name], files),
        f"run_dir={tmp_path}",
    )
    made = sorted(tmp_path.glob("*-seed*.png"))
    assert len(made) == (4 if name == "ldm_class" else 2)
    assert len({np.asarray(Image.open(path)).tobytes() for path in made}) == 2  # after two batches classes look alike
    picture: PngImageFile = Image.open(made[0])
    assert picture.size == (SIZE, SIZE)
    assert {key.partition("=")[0] for key in GIVEN[name] if not key.startswith("guidance")} <= picture.text.keys()
    assert (tmp_path / "grid.png").is_file()


@pytest.mark.parametrize("name", MEASURED)
def test_each_application_is_measured(programs, trained, tmp_path: Path, name: str) -> None:
    run = trained(name)
    programs.done("evaluate", *programs.use, f"checkpoint={run}", "num_images=8", f"run_dir={tmp_path}")
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["results"].keys() == MEASURED[name]
    assert {"reconstructions", "training_images"} <= found["controls"].keys()
    assert ("bicubic" in found["controls"]) == (name == "ldm_superres")


def test_the_share_of_dropped_parts_is_logged(trained, metrics) -> None:
    lines = [line for line in metrics(trained("ldm_text_semantic")) if "train/loss" in line]
    assert all({"train/dropped/text", "train/dropped/map", "train/captions_cut"} <= line.keys() for line in lines)


TRAINING = {
    "noise that no channel is for": (
        "ldm_superres",
        ["conditioner.module.max_noise=0.3"],
        "conditioner.spatial: it says 3, the conditioner gives 4",
    ),
    "nothing that makes small images": (
        "ldm_superres",
        ["conditioner.conditions=null"],
        "conditioner: this conditioner reads low res, but the batch has none",
    ),
    "channels that the module alone knows of": (
        "ldm_semantic",
        ["conditioner.spatial=3"],
        "conditioner.spatial: it says 3, the conditioner gives 7",
    ),
    "fewer classes in the module": (
        "ldm_class",
        ["conditioner.module.classes=5"],
        "conditioner.rows: it says 7, the conditioner gives 6",
    ),
    "more classes in the table of a module": (
        "ldm_class",
        ["conditioner=class_vector_tiny", "conditioner.module.classes=9"],
        "conditioner.classes: it says 6, ClassVector has 9",
    ),
    "fewer rows in the backbone": (
        "ldm_class",
        ["backbone.num_classes=6"],
        "backbone.num_classes: the backbone has 6 rows, the conditioner picks from 7",
    ),
    "guidance of an unconditional model": (
        "ldm_uncond",
        ["guidance=classifier_free"],
        "guidance: ClassifierFree compares with the null condition, which a model without conditions",
    ),
}


@pytest.mark.parametrize("case", TRAINING)
def test_a_condition_that_does_not_fit_is_refused_before_a_first_stage(programs, refused, tmp_path, case: str) -> None:
    name, overrides, message = TRAINING[case]
    refused("train", [f"experiment={name}", *programs.conditioned, *overrides, f"run_dir={tmp_path}"], message)


FAULTS = {
    "no class": ("ldm_class", (), "label: which class"),
    "unknown class": ("ldm_class", ("label=6",), "label: .*6.* 0 to 5"),
    "a prompt that nothing reads": ("ldm_class", ("label=1", "prompt=a star"), "prompt: "),
    "no mask": ("ldm_inpaint", ("image=IMAGE", "prompt=a"), "mask: "),
    "a mask of another size": ("ldm_inpaint", ("image=IMAGE", "mask=WIDE", "prompt=a"), "mask: .*16"),
    "a map with unknown classes": ("ldm_semantic", ("map=STRANGE",), "map: .*9"),
    "no map": ("ldm_semantic", (), "map: "),
    "a small image that is large": ("ldm_superres", ("image=LARGE",), "image: .*32"),
    "guidance without a null condition": (
        "ldm_superres",
        ("image=SMALL", "guidance=classifier_free"),
        "guidance: ClassifierFree compares with the null condition",
    ),
    "a scale for a part that is not there": (
        "ldm_text_semantic",
        ("map=MAP", "prompt=a", "+guidance.scales.class=2.0"),
        "guidance.scales: the conditioner has no part 'class'; its parts are: text, map",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_does_not_fit_is_refused_before_sampling(programs, trained, files, tmp_path: Path, case: str) -> None:
    name, overrides, message = FAULTS[case]
    run = trained(name)
    outcome = programs(
        "sample", *programs.use, f"checkpoint={run}", *with_files(overrides, files), f"run_dir={tmp_path / 'out'}"
    )
    assert outcome.code == 2, outcome
    lines = outcome.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[:1]
    assert re.search(message, outcome.err), outcome.err
    assert not (tmp_path / "out").exists()

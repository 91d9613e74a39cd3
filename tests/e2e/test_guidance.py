"""A classifier trained on the first stage's latents, and every guidance from the command line to the files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentdiff.checkpoint import store
from latentdiff.data.shards import write_shards

CLASSIFIER = (
    "classifier.channels=8",
    "classifier.channel_multipliers=[1,2]",
    "classifier.patch=1",
    "classifier.head_width=8",
    "max_batches=2",
)


@pytest.fixture(scope="module")
def classifier(programs, autoencoder: Path) -> Path:
    """Run directory of a classifier on the same first stage and path as ``ldm``."""
    run_dir = programs.home / "classifier"
    programs.done("train", *classifier_run(programs), f"first_stage.checkpoint={autoencoder}", f"run_dir={run_dir}")
    return run_dir


def classifier_run(programs) -> tuple[str, ...]:
    kept = [line for line in programs.stage_one if not line.startswith(("experiment", "auto", "advers", "task"))]
    return ("experiment=classifier", *kept, *CLASSIFIER)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def about(folder: Path) -> dict:
    text = Image.open(folder / "0000-seed0.png").text
    return text | {"latentdiff": json.loads(text["latentdiff"])}


def test_a_classifier_run_is_a_run_like_others(programs, classifier: Path, autoencoder: Path, metrics) -> None:
    last = store.verify(classifier / "checkpoints" / "last")
    assert last.kind == "classifier"
    assert last.first_stage["hash"] == store.digest(autoencoder / "checkpoints" / "last")
    train, val = metrics(classifier)[0], metrics(classifier)[-1]
    quarters = {f"accuracy_t{i}" for i in range(4)}
    assert {f"train/{name}" for name in ("loss", "accuracy", "lr", "grad_norm", *quarters)} <= set(train)
    assert {f"val/{name}" for name in ("loss", "accuracy", *quarters)} <= set(val)
    more = ("max_batches=3", f"first_stage.checkpoint={autoencoder}", f"run_dir={classifier}")
    assert "resuming from" in programs.done("train", *classifier_run(programs), *more).out


def test_each_guidance_makes_its_own_images(programs, ldm: Path, classifier: Path, tmp_path: Path) -> None:
    base = (*programs.use, f"checkpoint={ldm}", "prompt=a red circle", "seeds=[0,1]")
    clf = ("guidance=classifier", f"guidance.checkpoint={classifier}")
    chosen = {
        "Unguided": ("guidance=none",),
        "Interval": ("guidance=interval", "guidance.t_low=0.0", "guidance.scale=2000.0"),
        "Rescaled": ("guidance=rescaled", "guidance.scale=2000.0"),
        "Several": ("guidance=several", "guidance.scales.text=3000.0"),
        "Autoguidance": ("guidance=autoguidance", f"guidance.checkpoint={ldm}", "guidance.scale=4.0"),
        "ClassifierGuidance": (*clf, "guidance.scale=300.0", "label=3"),
    }
    made = {}
    for name, overrides in chosen.items():
        programs.done("sample", *base, *overrides, f"run_dir={tmp_path / name}")
        assert about(tmp_path / name)["latentdiff"]["guidance"]["name"] == name
        made[name] = pixels(tmp_path / name / "0000-seed0.png")
    itself = made.pop("Autoguidance")
    assert np.abs(itself - made["Unguided"]).max() <= 1, "a guide that is the model itself leads nowhere"
    for name, image in made.items():
        assert not any(np.array_equal(image, other) for other in made.values() if other is not image), name
    card = about(tmp_path / "ClassifierGuidance")["latentdiff"]["guidance"]
    assert (card["scale"], card["base"]) == (300.0, {"name": "Unguided"})
    assert card["digest"] == store.digest(classifier / "checkpoints" / "last")
    assert about(tmp_path / "ClassifierGuidance")["label"] == "3"
    none = ("guidance.scale=0.0", "label=3", f"run_dir={tmp_path / 'zero'}")
    programs.done("sample", *base, *clf, *none)
    assert np.abs(pixels(tmp_path / "zero" / "0000-seed0.png") - made["Unguided"]).max() <= 1


def test_the_label_and_the_base_decide(programs, ldm: Path, classifier: Path, tmp_path: Path) -> None:
    base = (*programs.use, f"checkpoint={ldm}", 'prompt=["a", "a"]', "seeds=[0]", "guidance=classifier")
    base += (f"guidance.checkpoint={classifier}", "guidance.scale=300.0")
    programs.done("sample", *base, "label=[1,4]", f"run_dir={tmp_path / 'two'}")
    programs.done("sample", *base, "label=4", f"run_dir={tmp_path / 'four'}")
    first, second = (pixels(tmp_path / "two" / f"{i:04d}-seed0.png") for i in range(2))
    assert np.abs(first - second).max() > 1
    assert np.abs(second - pixels(tmp_path / "four" / "0000-seed0.png")).max() <= 1
    free = ("guidance@guidance.base=classifier_free", "guidance.base.scale=2000.0", "label=4")
    programs.done("sample", *base, *free, f"run_dir={tmp_path / 'free'}")
    card = about(tmp_path / "free")["latentdiff"]["guidance"]
    assert card["base"] == {"name": "ClassifierFree", "scale": 2000.0}
    assert np.abs(second - pixels(tmp_path / "free" / "0001-seed0.png")).max() > 1


def test_negative_prompts_and_trajectories(programs, ldm: Path, tmp_path: Path) -> None:
    base = (*programs.use, f"checkpoint={ldm}", 'prompt=["a red circle", "a box"]', "seeds=[0,1,2]", "batch_size=4")
    base += ("guidance.scale=2000.0", "sampler.steps=3")
    chosen = {"empty": 'negative_prompt=""', "none": "paste=true", "blue": "negative_prompt=a blue star"}
    for name, negative in chosen.items():
        programs.done("sample", *base, negative, "trajectory=true", f"run_dir={tmp_path / name}")
    empty, none, blue = (pixels(tmp_path / name / "grid.png") for name in ("empty", "none", "blue"))
    assert np.abs(empty - none).max() <= 1
    assert np.abs(blue - none).max() > 1
    assert about(tmp_path / "blue")["negative_prompt"] == "a blue star"
    names = sorted(path.name for path in (tmp_path / "blue").glob("trajectory*"))
    assert names == [f"trajectory-{first:04d}.png" for first in (0, 3, 4)]  # of each prompt in each batch of 4
    moving = Image.open(tmp_path / "blue" / "trajectory-0004.png")
    assert moving.n_frames == 3
    frames = []
    for i in range(moving.n_frames):
        moving.seek(i)
        frames.append(np.asarray(moving.convert("RGB")).astype(int))
    assert np.abs(frames[0] - frames[-1]).max() > 1
    # the last estimate is what the image is: cell 1 of these is image 4
    scale = 128 // 16
    cell = frames[-1][4 : 4 + 128, 4 : 4 + 128][::scale, ::scale]
    assert np.abs(cell - pixels(tmp_path / "blue" / "0004-seed1.png")).max() <= 1


def test_evaluation_steers_by_the_data_s_label_and_bounds_the_latents(
    programs, ldm: Path, classifier: Path, tmp_path: Path
) -> None:
    chosen = ("guidance=classifier", f"guidance.checkpoint={classifier}", "guidance.scale=5.0", "sampler.steps=2")
    size = ("num_images=2", "batch_size=2", "bound=true")
    programs.done("evaluate", *programs.use, f"checkpoint={ldm}", *chosen, *size, f"run_dir={tmp_path}")
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["card"]["protocol"]["generation"]["guidance"]["name"] == "ClassifierGuidance"
    bound = found["results"]["bound"]
    assert bound["bits_per_dim"] == pytest.approx(bound["prior"] + bound["diffusion"] + bound["reconstruction"])
    assert "bits" in found["card"]["protocol"]["metrics"]["bound"]["meaning"]


def undropped(programs, autoencoder: Path, home: Path) -> Path:
    """A second stage that never saw the empty caption."""
    run_dir = home / "undropped"
    chosen = ("conditioner.module.drop=0.0", "guidance=none", "max_batches=1", f"run_dir={run_dir}")
    programs.done("train", *programs.stage_two, f"first_stage.checkpoint={autoencoder}", *chosen)
    return run_dir


@pytest.mark.slow
def test_guidance_needs_a_model_that_saw_the_empty_caption(
    programs, autoencoder: Path, ldm: Path, refused, tmp_path: Path, tmp_path_factory
) -> None:
    run = undropped(programs, autoencoder, tmp_path_factory.mktemp("undropped"))
    message = r"guidance: .* trained with conditioner\.module\.drop=0 never saw; choose guidance=none"
    here = f"run_dir={tmp_path}"
    base = (*programs.use, f"checkpoint={run}", here)
    refused("sample", [*base, "prompt=a", "guidance=classifier_free"], message)
    refused("evaluate", [*base, "guidance=rescaled"], message)


FAULTS = {
    "label for nobody": (["label=1"], "label: nothing reads it here; choose guidance=classifier"),
    "label missing": (["CLASSIFIER"], "label: which class"),
    "label unknown": (["CLASSIFIER", "label=6"], "knows the labels 0 to 5; 1 of 1 samples have none"),
    "label is a text": (["CLASSIFIER", "label=ringg"], "label: unknown class .ringg.; did you mean ring"),
    "labels too few": (
        ["CLASSIFIER", 'prompt=["a", "b"]', "label=[1,2,3]"],
        "prompt: expected one value, or a list of one for each",
    ),
    "negative prompt unread": (
        ["guidance=none", "negative_prompt=a box"],
        "negative_prompt: Unguided as configured compares with no other condition",
    ),
    "no classifier named": (["guidance=classifier", "label=1"], "key guidance.checkpoint: has no value yet"),
    "not a classifier": (
        ["guidance=classifier", "LDM", "label=1"],
        "of kind diffusion .*one of kind classifier \\(noisy classifier\\)",
    ),
    "not a guide": (["guidance=autoguidance", "PATH"], "of kind classifier .*one of kind diffusion"),
    "no such part": (["guidance=several", "+guidance.scales.map=2.0"], "no part 'map'; its parts are: text"),
}


SLOW = ("label for nobody", "label is a text", "labels too few", "not a guide", "no classifier named", "no such part")
"""Left out of the default suite: others are refused at the same place."""


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in FAULTS])
def test_faulty_guidance_is_refused(programs, classifier: Path, ldm: Path, refused, tmp_path: Path, case: str) -> None:
    overrides, message = FAULTS[case]
    named = {
        "CLASSIFIER": ["guidance=classifier", f"guidance.checkpoint={classifier}"],
        "LDM": [f"guidance.checkpoint={ldm}"],
        "PATH": [f"guidance.checkpoint={classifier}"],
    }
    given = [line for override in overrides for line in named.get(override, [override])]
    refused("sample", [*programs.use, f"checkpoint={ldm}", "prompt=a", f"run_dir={tmp_path}", *given], message)


@pytest.mark.slow
def test_a_guide_of_other_latents_or_another_path_is_refused(
    programs, place, autoencoder: Path, ldm: Path, refused, tmp_path: Path, tmp_path_factory
) -> None:
    home = tmp_path_factory.mktemp("strange")
    own = ("max_batches=1", f"first_stage.checkpoint={autoencoder}", "diffusion=ddpm_v", f"run_dir={home / 'path'}")
    programs.done("train", *classifier_run(programs), *own)
    other = ("max_batches=1", f"first_stage.checkpoint={place.home / 'other'}", f"run_dir={home / 'latents'}")
    programs.done("train", *classifier_run(programs), *other)
    base = [*programs.use, f"checkpoint={ldm}", "prompt=a", "label=1", "guidance=classifier", f"run_dir={tmp_path}"]
    refused("sample", [*base, f"guidance.checkpoint={home / 'path'}"], "path ScaledLinearDDPM, the model on Rectified")
    refused("sample", [*base, f"guidance.checkpoint={home / 'latents'}"], "latents of 3 channels at 1/2, the model")


TRAINING = {
    "a second checkpoint": (
        ["guidance=autoguidance", "guidance.checkpoint=somewhere"],
        r"guidance: CheckpointAutoguidance reads a second checkpoint and is for sample\.py",
    ),
    "no dropout": (["conditioner.module.drop=0.0"], r"trained with conditioner\.module\.drop=0 never saw"),
    "no such part": (["guidance=several", "+guidance.scales.map=2.0"], "no part 'map'; its parts are: text"),
}


@pytest.mark.parametrize("case", TRAINING)
def test_training_refuses_guidance_that_it_cannot_show(programs, autoencoder, refused, tmp_path: Path, case) -> None:
    overrides, message = TRAINING[case]
    chosen = (f"first_stage.checkpoint={autoencoder}", *overrides, f"run_dir={tmp_path}")
    refused("train", [*programs.stage_two, *chosen], message)


def test_data_without_labels_train_no_classifier(programs, autoencoder, place, refused, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(file, "PNG")
    unlabelled = place.home.parent / "unlabelled"
    write_shards([{"png": file.getvalue()} for _ in range(20)], unlabelled)
    chosen = ("data=webdataset", f"data.train={unlabelled}", f"data.val={unlabelled}", f"run_dir={tmp_path}")
    refused(
        "train",
        [*classifier_run(programs), f"first_stage.checkpoint={autoencoder}", *chosen],
        r"20 of 20 samples have no label \(\.cls\)",
    )

"""Both stages, their evaluation and sampling, from the command line to the files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from latentdiff.checkpoint import store


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.parametrize(("stage", "pictures"), [("autoencoder", "reconstructions"), ("ldm", "samples")])
def test_a_run_directory_holds_the_whole_run(request, metrics, stage: str, pictures: str) -> None:
    run_dir = request.getfixturevalue(stage)
    names = {path.name for path in run_dir.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", pictures, "csv"} <= names
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert (config["max_batches"], config["run_dir"]) == (4, str(run_dir))
    seen = [(line["batches_seen"], line["images_seen"]) for line in metrics(run_dir)]
    assert seen == [(1, 8), (2, 16), (2, 16), (3, 24), (4, 32), (4, 32)]
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["batch-00000002", "best", "last"]
    assert store.verify(run_dir / "checkpoints" / "last").counters == {"batches_seen": 4, "images_seen": 32}
    assert [path.name for path in sorted((run_dir / pictures).iterdir())] == [
        "batch-00000002.png",
        "batch-00000004.png",
    ]
    assert pixels(run_dir / pictures / "batch-00000004.png").std() > 0


def test_best_is_the_best_validation(autoencoder: Path, ldm: Path, metrics) -> None:
    for run_dir, name, best_of in ((autoencoder, "val/psnr", max), (ldm, "val/loss", min)):
        values = {line["batches_seen"]: line[name] for line in metrics(run_dir) if name in line}
        best = store.read_manifest(run_dir / "checkpoints" / "best")
        assert best.extra[name] == best_of(values.values()) == values[best.counters["batches_seen"]]


def test_the_same_command_gives_the_same_run(programs, ldm: Path, autoencoder: Path, metrics, tmp_path: Path) -> None:
    again = (f"first_stage.checkpoint={autoencoder}", f"run_dir={tmp_path / 'again'}")
    programs.done("train", *programs.stage_two, *again)
    assert metrics(tmp_path / "again") == metrics(ldm)
    programs.done("train", *programs.stage_two, *again[:1], "seed=1", "max_batches=1", f"run_dir={tmp_path / 'other'}")
    assert metrics(tmp_path / "other")[0] != metrics(ldm)[0]


def test_a_short_run_ends_with_a_line_a_validation_and_a_best(programs, metrics, tmp_path: Path) -> None:
    seldom = ("max_batches=3", "validate_every=50", "callbacks.log.every=50", f"run_dir={tmp_path}")
    programs.done("train", *programs.stage_one, *seldom)
    train, val = metrics(tmp_path)
    assert (train["batches_seen"], val["batches_seen"]) == (3, 3)
    assert "train/nll" in train
    assert store.read_manifest(tmp_path / "checkpoints" / "best").extra["val/psnr"] == val["val/psnr"]


def test_stage_two_trains_its_first_stage_once(programs, metrics, tmp_path: Path) -> None:
    """The first stage is trained in a process of its own."""
    inner = [line for line in programs.stage_one if line.startswith(("autoencoder", "adversarial", "task."))]
    automatic = (
        "first_stage.checkpoint=auto",
        f"first_stage.overrides=[{','.join([*inner, 'max_batches=2', 'global_batch=8', 'validate_every=1'])}]",
        f"paths.first_stages={tmp_path / 'first'}",
        "max_batches=1",
    )
    out = programs.done("train", *programs.stage_two, *automatic, f"run_dir={tmp_path / 'a'}").out
    (first,) = (tmp_path / "first").iterdir()
    assert f"training 'ae_kl' in {first}" in out
    last = first / "checkpoints" / "last"
    assert store.read_manifest(last).counters == {"batches_seen": 2, "images_seen": 16}
    assert store.read_manifest(tmp_path / "a" / "checkpoints" / "last").first_stage == {
        "path": str(last),
        "hash": store.digest(last),
    }
    out = programs.done("train", *programs.stage_two, *automatic, f"run_dir={tmp_path / 'b'}").out
    assert f"using {first}" in out
    assert list((tmp_path / "first").iterdir()) == [first]
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_evaluation_of_stage_two(programs, ldm: Path, tmp_path: Path) -> None:
    chosen = ("sampler=ddim", "sampler.steps=2", "guidance.scale=1.5", "num_images=6", "batch_size=4")
    programs.done("evaluate", *programs.use, f"checkpoint={ldm}", *chosen, f"run_dir={tmp_path}")
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["results"]) == {"captions", "frechet"}
    assert set(found["results"]["captions"]) == {"one_object", "two_objects", "shuffled", "reconstructions"}
    card = found["card"]
    assert card["model"]["digest"] == store.digest(ldm / "checkpoints" / "last")
    assert card["model"]["kind"] == "diffusion"
    protocol = card["protocol"]
    assert protocol["generation"]["sampler"]["name"] == "DDIM"
    assert protocol["generation"]["steps"] == 2
    assert protocol["generation"]["guidance"] == {"name": "ClassifierFree", "scale": 1.5}
    assert (protocol["samples"]["count"], protocol["samples"]["resolution"]) == (6, [16, 16])
    assert pixels(tmp_path / "grid.png").std() > 0


def test_evaluation_of_stage_one_is_the_mean_psnr_of_training_s_validation(
    programs, autoencoder: Path, tmp_path: Path
) -> None:
    programs.done("evaluate", *programs.use, f"checkpoint={autoencoder}", "num_images=16", f"run_dir={tmp_path}")
    found = json.loads((tmp_path / "results.json").read_text())
    validated = store.read_manifest(autoencoder / "checkpoints" / "last").extra["val/psnr"]
    assert found["card"]["protocol"]["generation"]["reconstruction"] == "posterior mean"
    assert found["results"]["reconstruction"]["psnr"] == pytest.approx(validated, abs=0.05)  # of uint8 images
    assert (tmp_path / "grid.png").is_file()


def test_an_image_depends_on_its_own_prompt_and_seed_alone(programs, ldm: Path, tmp_path: Path) -> None:
    base = (*programs.use, f"checkpoint={ldm}")
    several = ('prompt=["a red circle, left", "a=b {c}"]', "seeds=[0,5]", "batch_size=3", f"run_dir={tmp_path / 'a'}")
    programs.done("sample", *base, *several)
    programs.done("sample", *base, "prompt=a=b {c}", "seeds=[5]", f"run_dir={tmp_path / 'b'}")
    files = sorted(path.name for path in (tmp_path / "a").glob("*.png"))
    assert files == ["0000-seed0.png", "0001-seed5.png", "0002-seed0.png", "0003-seed5.png", "grid.png"]
    image = Image.open(tmp_path / "a" / "0003-seed5.png")
    assert (image.text["prompt"], image.text["seed"]) == ("a=b {c}", "5")
    same = np.abs(pixels(tmp_path / "a" / "0003-seed5.png") - pixels(tmp_path / "b" / "0000-seed5.png"))
    assert same.max() <= 1  # a batch of another size may round otherwise
    assert np.abs(pixels(tmp_path / "a" / "0002-seed0.png") - pixels(tmp_path / "b" / "0000-seed5.png")).max() > 1


def test_no_guidance_is_guidance_of_scale_one(programs, ldm: Path, tmp_path: Path) -> None:
    base = (*programs.use, f"checkpoint={ldm}", "prompt=a red circle", "seeds=[0,1]")
    for name, chosen in (("none", "guidance=none"), ("one", "guidance.scale=1.0"), ("more", "guidance.scale=20.0")):
        programs.done("sample", *base, chosen, f"run_dir={tmp_path / name}")
    none, one, more = (pixels(tmp_path / name / "grid.png") for name in ("none", "one", "more"))
    assert np.abs(none - one).max() <= 1
    assert not np.array_equal(none, more)


SAMPLERS = {"ddim": "DDIM", "dpmpp_2m": "DPMSolverPP2M", "euler": "Euler"}


@pytest.mark.parametrize(("diffusion", "samplers"), [("ddpm_epsilon", SAMPLERS), ("ddpm_v", ["dpmpp_2m"])])
def test_discrete_diffusions_are_sampled_by_every_sampler(
    programs, autoencoder: Path, tmp_path: Path, diffusion: str, samplers: Iterable[str]
) -> None:
    chosen = (f"diffusion={diffusion}", "sampler=ddim", "guidance=none", "max_batches=1", f"run_dir={tmp_path / 'run'}")
    programs.done("train", *programs.stage_two, f"first_stage.checkpoint={autoencoder}", *chosen)
    assert list((tmp_path / "run" / "samples").iterdir())
    for sampler in samplers:
        where = tmp_path / sampler
        settings = (f"sampler={sampler}", "sampler.steps=3", "prompt=a red circle", "seeds=[0]", f"run_dir={where}")
        programs.done("sample", *programs.use, f"checkpoint={tmp_path / 'run'}", *settings)
        about = json.loads(Image.open(where / "0000-seed0.png").text["latentdiff"])
        assert (about["sampler"]["name"], about["steps"]) == (SAMPLERS[sampler], 3)
        assert about["path"]["name"] == "ScaledLinearDDPM"
        assert about["guidance"] == {"name": "Unguided"}
        assert pixels(where / "0000-seed0.png").std() > 0


@pytest.mark.parametrize("name", ["train", "evaluate", "sample"])
def test_help_needs_nothing_else(programs, name: str) -> None:
    process = programs.start(name, "--help")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.startswith(f"{name}.py: "), out
    assert "\nKeys (key=value)" in out

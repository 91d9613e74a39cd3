"""The card of an exported model: what is known stands there, and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from latentdiff.app import cli
from latentdiff.checkpoint import store
from latentdiff.config.instantiate import build

AUTOENCODER = {
    "_target_": "latentdiff.models.autoencoder.autoencoder.Autoencoder",
    "bottleneck": {"_target_": "latentdiff.models.autoencoder.bottlenecks.kl.KL"},
    "channels": 32,
    "channel_multipliers": [1],
    "num_res_blocks": 1,
    "latent_channels": 3,
}
CONFIG = {
    "experiment": "ae_kl",
    "autoencoder": AUTOENCODER,
    "data": {"size": 48, "train": "hf://datasets/me/photos/{000..099}.tar"},
    "global_batch": 16,
    "optim": {"lr": 0.003, "optimizer": {"_target_": "latentdiff.training.muon.Muon"}},
}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Of a first stage with random weights."""
    weights = build(AUTOENCODER).state_dict()
    store.save(
        tmp_path / "outputs/run/checkpoints/last",
        kind="autoencoder",
        model={"latent_mean": torch.zeros(3), "latent_std": torch.ones(3)},
        ema={f"ema.model.{name}": value for name, value in weights.items()},
        config=yaml.safe_dump(CONFIG),
        counters={"batches_seen": 7, "images_seen": 112},
        latent={"channels": 3, "factor": 1},
        data={"fingerprint": "0123abcd"},
    )
    return tmp_path / "outputs/run"


@pytest.fixture
def evaluated(run_dir: Path):
    """``evaluated(place, psnr, **model)``: a results.json of these weights, unless ``model`` says otherwise."""

    def write(place: str, psnr: float, **model: object) -> Path:
        digest = store.digest(run_dir / "checkpoints/last")
        protocol = {"samples": {"count": 500, "resolution": [48, 48]}, "generation": {"steps": 25}}
        parts = {"observed": {}, "environment": {"latentdiff": "0.1.0"}, "config": {}}
        card = {"schema": 2, "model": {"digest": digest, "weights": "ema"} | model, "protocol": protocol, **parts}
        file = run_dir.parent / place / "results.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"results": {"reconstruction": {"psnr": psnr}, "list": [1]}, "card": card}))
        return file

    return write


def exported(run_dir: Path, dest: Path, *options: object) -> tuple[dict, str]:
    """Front matter and text of the card."""
    assert cli.main(["export", str(run_dir), str(dest), "--format", "latentdiff", *map(str, options)]) == 0
    _, front, text = (dest / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_what_is_known_stands_in_the_card(run_dir: Path, tmp_path: Path, capsys) -> None:
    front, text = exported(run_dir, tmp_path / "model", "--license", "apache-2.0")
    assert "note: the files name the training data as the run did: hf://datasets/me/photos" in capsys.readouterr().out
    assert front == {
        "license": "apache-2.0",
        "library_name": "latentdiff",
        "datasets": ["me/photos"],
        "tags": ["latent-diffusion", "latentdiff"],
    }
    count = sum(value.numel() for value in build(AUTOENCODER).state_dict().values())
    said = [f"| first stage | {count:,} |", "| images | 48 x 48 |", "| latents | 3 channels at 1/1 of the side |"]
    said += ["| bottleneck | KL |", "| data | hf://datasets/me/photos/{000..099}.tar |", "| images seen | 112 |"]
    said += ["| global batch | 16 |", "| optimiser | Muon |", "| learning rate | 0.003 |", "`0123abcd`"]
    said += [
        "python train.py experiment=ldm_txt2img first_stage.checkpoint=FOLDER",
        store.digest(store.resolve(run_dir)),
    ]
    assert [each for each in said if each not in text] == []


def test_what_is_not_known_is_left_out(run_dir: Path, tmp_path: Path) -> None:
    front, text = exported(run_dir, tmp_path / "model")
    assert "license" not in front
    for absent in ("None", "seed", "## Evaluation", "samples.png", "sample.py", "prediction"):
        assert absent not in text
    assert "No evaluation of these weights came with the export" in text


def test_the_newest_evaluation_of_these_weights_is_found(run_dir: Path, evaluated, tmp_path: Path) -> None:
    evaluated("evaluate/2026-01-01", 30.5)
    newest = evaluated("evaluation", 31.25)
    evaluated("run/evaluation", 99.0, digest="another")
    evaluated("other", 98.0, weights="model")
    os.utime(newest, (2e9, 2e9))
    Image.new("RGB", (4, 4)).save(newest.with_name("grid.png"))
    _, text = exported(run_dir, tmp_path / "model")
    assert "| reconstruction.psnr | 31.2500 |" in text
    assert "| images | 500 |" in text
    assert "30.5" not in text
    assert "99.0" not in text
    assert "98.0" not in text
    assert "![images](samples.png)" in text
    assert (tmp_path / "model/samples.png").read_bytes() == newest.with_name("grid.png").read_bytes()


def test_an_evaluation_can_be_named(run_dir: Path, evaluated, tmp_path: Path, capsys) -> None:
    named, other = evaluated("far/away/from/it", 30.5), evaluated("other", 98.0, digest="another")
    assert "| reconstruction.psnr | 30.5000 |" in exported(run_dir, tmp_path / "model", "--results", named)[1]
    arguments = ["export", str(run_dir), str(tmp_path / "again"), "--format", "latentdiff", "--results", str(other)]
    assert cli.main(arguments) == 2
    assert "is no evaluation of the averaged weights of this checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_a_grid_that_training_drew_of_these_weights_is_taken(run_dir: Path, tmp_path: Path) -> None:
    for batches, colour in ((3, "red"), (7, "blue")):
        place = run_dir / "reconstructions" / f"batch-{batches:08d}.png"
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), colour).save(place)
    exported(run_dir, tmp_path / "model")
    assert Image.open(tmp_path / "model/samples.png").getpixel((0, 0)) == (0, 0, 255)


def test_what_the_card_knows_goes_on_with_the_folder(run_dir: Path, evaluated, tmp_path: Path) -> None:
    (run_dir / "environment.json").write_text(json.dumps({"program": "train", "revision": "c0ffee"}))
    results = evaluated("far/away/from/it", 30.5)
    Image.new("RGB", (4, 4)).save(results.with_name("grid.png"))
    front, text = exported(run_dir, tmp_path / "one/model", "--results", results, "--license", "mit")
    assert "| commit of latentdiff | `c0ffee` |" in text
    assert exported(tmp_path / "one/model", tmp_path / "two/model") == (front, text)
    assert exported(tmp_path / "two/model", tmp_path / "three", "--license", "apache-2.0")[0]["license"] == "apache-2.0"
    manifest = (tmp_path / "two/model/checkpoints/last/manifest.json").read_text()
    assert str(tmp_path) not in manifest

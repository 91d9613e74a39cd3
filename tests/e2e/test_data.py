"""The user's own pictures: a folder, shards, training on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentdiff.app import cli
from latentdiff.checkpoint import store

PICTURES = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many shapes and modes, one of them broken; two in three have a caption."""
    folder = tmp_path_factory.mktemp("pictures")
    draws = np.random.default_rng(0)
    modes = {"RGB": 3, "RGBA": 4, "L": 0, "LA": 2}
    for i in range(PICTURES):
        mode = list(modes)[i % 4]
        height, width = 20 + i, 60 - i
        shape = (height, width, modes[mode]) if modes[mode] else (height, width)
        path = folder / ("deep/er" if i % 2 else ".") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, shape, np.uint8), mode).save(path)
        if i % 3:
            path.with_suffix(".txt").write_text(f"picture {i}, with a comma")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("shards") / "mine"
    assert cli.main(["shards", "make", str(folder), str(dest), "--size", "24"]) == 0
    return dest


def own(shards: Path) -> tuple[str, ...]:
    return ("data=webdataset", f"data.train={shards}/{{00000..00000}}.tar")


def test_a_folder_becomes_shards(folder: Path, shards: Path, capsys, tmp_path: Path) -> None:
    index = json.loads((shards / "index.json").read_text())
    assert [(shard["name"], shard["samples"]) for shard in index["shards"]] == [("00000.tar", PICTURES)]
    assert cli.main(["shards", "make", str(folder), str(tmp_path / "again")]) == 0
    said = capsys.readouterr()
    assert f"{PICTURES} images in 1 shard," in said.out
    assert "8 no caption:\n  000.png" in said.err
    assert "1 unreadable:\n  broken.jpg" in said.err


def test_stage_one_needs_no_captions_and_stage_two_does(programs, shards: Path, metrics, tmp_path: Path) -> None:
    run_dir = tmp_path / "one"
    programs.done("train", *programs.stage_one, *own(shards), f"run_dir={run_dir}")
    assert metrics(run_dir)[-1]["images_seen"] == 32
    assert store.read_manifest(run_dir / "checkpoints" / "last").latent == {"channels": 4, "factor": 2}
    results = tmp_path / "results"
    programs.done("evaluate", *programs.use, f"checkpoint={run_dir}", "num_images=12", f"run_dir={results}")
    found = json.loads((results / "results.json").read_text())
    assert set(found["results"]) == {"frechet", "reconstruction", "latents"}
    assert found["card"]["protocol"]["conditions"]["dataset"]["name"].startswith("webdataset")


def test_stage_two_on_captioned_shards(programs, folder: Path, tmp_path: Path) -> None:
    """Without a word about it, the first stage is trained on the same shards; here it is given."""
    for path in folder.rglob("*.png"):
        if not path.with_suffix(".txt").exists():
            path.with_suffix(".txt").write_text(f"late caption of {path.stem}")
    assert cli.main(["shards", "make", str(folder), str(tmp_path / "mine")]) == 0
    one, two = tmp_path / "one", tmp_path / "two"
    programs.done("train", *programs.stage_one, *own(tmp_path / "mine"), f"run_dir={one}")
    mine = (*own(tmp_path / "mine"), f"first_stage.checkpoint={one}", f"run_dir={two}")
    programs.done("train", *programs.stage_two, *mine)
    where = tmp_path / "results"
    programs.done("evaluate", *programs.use, f"checkpoint={two}", "num_images=12", f"run_dir={where}")
    assert set(json.loads((where / "results.json").read_text())["results"]) == {"frechet"}


def test_stage_one_on_buckets_and_on_shards_drawn_with_replacement(
    programs, shards: Path, metrics, tmp_path: Path
) -> None:
    tars = f"{shards}/{{00000..00000}}.tar"
    buckets = ("data=webdataset", "data.buckets=[[32,32],[24,40],[40,24]]", "data.min_size=22")
    for name, choice in (("buckets", buckets), ("resampled", ("data=resampled",))):
        given = (*choice, f"data.train={tars}", f"data.val={tars}", f"run_dir={tmp_path / name}")
        programs.done("train", *programs.stage_one, *given)
        assert metrics(tmp_path / name)[-1]["images_seen"] == 32
    faulty = programs("train", *programs.stage_one, *own(shards), "data.buckets=[[33,32]]")
    assert faulty.code == 2
    assert "data.buckets: 33x32 is not divisible by the autoencoder's factor = 2" in faulty.err

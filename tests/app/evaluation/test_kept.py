"""Evaluations that stand already, of a stand-in for a model and photographs that nobody took."""

import io
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console

from latentdiff.app import schema
from latentdiff.app.evaluation.kept import complete, kept, remove_complete
from latentdiff.app.evaluation.one_evaluation import measure
from latentdiff.app.evaluation.parts import Parts
from latentdiff.app.evaluation.references import references_for
from latentdiff.app.evaluation.repeats import check_kept, measure_repeats
from latentdiff.app.evaluation.subject import Subject, data_for
from latentdiff.app.evaluation.work_files import clear, no_work_if_refused
from latentdiff.app.ranks import Ranks
from latentdiff.config.compose import compose
from latentdiff.config.errors import InputError
from latentdiff.data.shards import write_shards
from latentdiff.evaluation.report import write_results
from latentdiff.metrics.features.random_conv import RandomConvFeatures
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.on_features import OnFeatures

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
ALONE = Ranks(0, 1, torch.device("cpu"), None)
SIZE, COUNT = 16, 6
QUIET = Console(quiet=True)
IDENTITY = {"digest": "ab", "weights": "ema", "checkpoint": "there", "first_stage": {"path": "x", "hash": "cd"}}


def put_shards(folder, val_seed=1):
    for name, seed in (("train", 0), ("val", val_seed)):
        samples = []
        for picture in np.random.default_rng(seed).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG")
            samples.append({"png": file.getvalue()})
        shutil.rmtree(folder / name, ignore_errors=True)
        write_shards(samples, folder / name)


class Stand:
    """Gives an image of its own for each seed, and counts."""

    def __init__(self):
        self.made = 0

    def __call__(self, batch, seeds):
        self.made += len(seeds)
        fills = torch.tensor([(seed % 251 + (seed >> 32) * 7) % 256 for seed in seeds], dtype=torch.uint8)
        return fills[:, None, None, None].expand(-1, 3, SIZE, SIZE).contiguous()

    def describe(self):
        return {"stand": "in"}


@pytest.fixture
def prepared(tmp_path):
    """``prepared(*overrides, identity=)``: configuration and parts over the shards as they are now."""
    put_shards(tmp_path / "shards")
    numbers = itertools.count()

    def load(*overrides, identity=IDENTITY):
        schema.register()
        data = ("data=webdataset", *(f"data.{name}={tmp_path / 'shards' / name}" for name in ("train", "val")))
        given = (*data, f"data.size={SIZE}", "data.workers=0", f"num_images={COUNT}", "batch_size=2", "controls=false")
        cfg, faults = compose(CONFIGS, "evaluate", ["checkpoint=x", *given, *overrides])
        assert faults == []
        config = OmegaConf.create({"conditioner": {"conditions": None}})
        subject = Subject(generate=Stand(), identity=identity, name="x", data=cfg.data, config=config)
        opened = data_for(cfg, subject, ALONE)
        metrics = {"m": OnFeatures(features=RandomConvFeatures(), measures=[FrechetDistance()])}
        references = references_for(cfg, metrics, opened, subject, ALONE, tmp_path / f"reference-{next(numbers)}")
        return cfg, Parts(subject, opened, metrics, references)

    return load


def evaluated(cfg, parts, place):
    """As the program ends."""
    found = measure_repeats(cfg, parts, ALONE, place, QUIET)
    write_results(place / "results.json", found.as_file())
    clear(place)


def moved(identity, **changes):
    return {**identity, "checkpoint": "elsewhere", "first_stage": {"path": "y", "hash": "cd"}, **changes}


def test_the_same_evaluation_is_kept_whatever_no_number_depends_on(prepared, tmp_path):
    evaluated(*prepared(), tmp_path / "run")
    other = ("neighbours=3", "max_duplicates=1", "controls=true", "trainer=ddp_cpu", f"paths.outputs={tmp_path}")
    found = kept(tmp_path / "run", *prepared(*other, identity=moved(IDENTITY)), ALONE)
    assert set(found["results"]) == {"m"}


@pytest.mark.parametrize(
    ("overrides", "identity", "message"),
    [
        (("seed=1",), IDENTITY, r"protocol\.seeds\.base: 0 \| 1"),
        (("num_reference=5",), IDENTITY, r"protocol\.reference\.m\..*: 6 \| 5"),
        (("save_samples=npz",), IDENTITY, r'config\.save_samples: null \| "npz"'),
        ((), IDENTITY | {"digest": "ef"}, r'model\.digest: "ab" \| "ef"'),
        ((), IDENTITY | {"weights": "model"}, r'model\.weights: "ema" \| "model"'),
        ((), moved(IDENTITY, first_stage={"path": "x", "hash": "ef"}), r'model\.first_stage\.hash: "cd" \| "ef"'),
    ],
)
def test_another_evaluation_is_refused(prepared, tmp_path, overrides, identity, message):
    evaluated(*prepared(), tmp_path / "run")
    with pytest.raises(InputError, match=rf"holds another evaluation .*(?s:.*){message}"):
        kept(tmp_path / "run", *prepared(*overrides, identity=identity), ALONE)


def test_changed_shards_are_another_evaluation(prepared, tmp_path):
    evaluated(*prepared(), tmp_path / "run")
    put_shards(tmp_path / "shards", val_seed=3)
    with pytest.raises(InputError, match=r"protocol\.conditions\.dataset\.\w+: "):
        kept(tmp_path / "run", *prepared(), ALONE)


def test_seeds_that_stand_are_checked_before_the_first_image(prepared, tmp_path):
    evaluated(*prepared("repeats=3"), tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()  # as if it had been killed in the end
    cfg, parts = prepared("repeats=3", "max_duplicates=1")
    check_kept(cfg, parts, ALONE, tmp_path / "run")
    measure_repeats(cfg, parts, ALONE, tmp_path / "run", QUIET)
    assert parts.subject.generate.made == COUNT, "those of the first seed"
    put_shards(tmp_path / "shards", val_seed=3)
    cfg, parts = prepared("repeats=3")
    with pytest.raises(InputError, match=r"seed-1' holds another evaluation"):
        check_kept(cfg, parts, ALONE, tmp_path / "run")


def test_what_has_work_beside_it_is_not_complete(prepared, tmp_path):
    cfg, parts = prepared()
    evaluated(cfg, parts, tmp_path)
    assert complete(tmp_path)
    measure(cfg, *parts, ALONE, tmp_path, QUIET)
    assert not complete(tmp_path)
    assert kept(tmp_path, *prepared("seed=1"), ALONE) is None, "the work says of what it is"
    remove_complete(tmp_path)
    assert (tmp_path / "results.json").exists()
    clear(tmp_path)
    remove_complete(tmp_path)
    assert not tmp_path.exists()


def test_a_refused_evaluation_leaves_no_reference_behind(prepared, tmp_path):
    cfg, parts = prepared()
    references_for(cfg, parts.metrics, parts.data, parts.subject, ALONE, tmp_path / "run")
    with pytest.raises(InputError), no_work_if_refused(tmp_path / "run", ALONE):
        raise InputError("no")
    assert list((tmp_path / "run").iterdir()) == []

"""What a card and unfinished work depend on, and what is asked of the data, on photographs that nobody took."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console

from latentdiff.app import schema
from latentdiff.app.evaluation import parts as evaluation_parts
from latentdiff.app.evaluation.one_evaluation import _determining, _planned, _protocol, measure
from latentdiff.app.evaluation.parts import load_parts
from latentdiff.app.evaluation.subject import Subject, data_for
from latentdiff.app.ranks import Ranks
from latentdiff.config.compose import compose
from latentdiff.config.errors import InputError
from latentdiff.data.shards import write_shards
from latentdiff.evaluation.compare import differences
from latentdiff.evaluation.engine import Work
from latentdiff.evaluation.prompts import PromptFile
from latentdiff.metrics.clip_score import ClipScore
from latentdiff.metrics.features.random_conv import RandomConvFeatures
from latentdiff.metrics.on_features import OnFeatures

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
ALONE = Ranks(0, 1, torch.device("cpu"), None)
SIZE, COUNT = 16, 6


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """``train`` and ``val`` with captions and labels, ``first`` with a caption of its first image alone."""
    folder = tmp_path_factory.mktemp("shards")
    for name, seed in (("train", 0), ("val", 1), ("first", 2)):
        samples = []
        for i, picture in enumerate(np.random.default_rng(seed).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG")
            captioned = {"txt": f"picture {i}"} if name != "first" or i == 0 else {}
            about = {} if name == "first" else {"json": {"kind": "ab"[i % 2]}}
            samples.append({"png": file.getvalue(), "cls": i % 2, **captioned, **about})
        write_shards(samples, folder / name)
    return folder


@pytest.fixture
def chosen(shards):
    def compose_with(*overrides, train="train", val="val"):
        schema.register()
        data = ("data=webdataset", f"data.train={shards / train}", f"data.val={shards / val}", f"data.size={SIZE}")
        given = (*data, "data.workers=0", "checkpoint=x", f"num_images={COUNT}", "batch_size=2", *overrides)
        cfg, faults = compose(CONFIGS, "evaluate", list(given))
        assert faults == []
        return cfg

    return compose_with


class Stand:
    """Gives an image of its own for each sample, and counts."""

    def __init__(self):
        self.made = 0

    def __call__(self, batch, seeds):
        self.made += len(batch)
        return torch.stack([torch.full((3, SIZE, SIZE), i, dtype=torch.uint8) for i in range(len(batch))]) + batch.start

    def describe(self):
        return {"stand": "in"}


def subject_of(cfg, conditioner=None, **more):
    config = OmegaConf.create({"conditioner": conditioner or {"conditions": None}})
    own = {"generate": Stand(), "identity": {"digest": "ab"}, "name": "x", "data": cfg.data, "config": config}
    return Subject(**{**own, **more})


def masks(boxes):
    return {"conditions": {"mask": {"_target_": "latentdiff.data.masks.RandomMasks", "most_boxes": boxes}}}


BY_NAME = ("data.module.label_field=kind", "data.module.class_names=[a,b]")


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        ({}, {"overrides": BY_NAME}, {"labels.field", "labels.names"}),
        ({"overrides": BY_NAME}, {"overrides": (BY_NAME[0], "data.module.class_names=[b,a]")}, {"labels.names"}),
        ({"conditioner": masks(1)}, {"conditioner": masks(2)}, {"made_by.mask.most_boxes"}),
        ({"conditioner": {"classes": 2}}, {"conditioner": {"classes": 3}}, {"labels.classes"}),
    ],
)
def test_what_conditions_are_made_of_is_part_of_the_protocol(chosen, one, other, named):
    def protocol(overrides=(), conditioner=None):
        cfg = chosen(*overrides)
        subject = subject_of(cfg, conditioner)
        return json.loads(json.dumps(_protocol(cfg, subject, data_for(cfg, subject, ALONE), {}, Work(COUNT, 2))))

    found = differences([{"protocol": protocol(**each)} for each in (one, other)])
    assert {each.key.removeprefix("protocol.conditions.") for each in found} == named
    assert differences([{"protocol": protocol(**one)}] * 2) == []


def test_the_makers_of_a_checkpoint_s_own_data_are_told_too(chosen):
    cfg = chosen()
    cfg.data.module.conditions = masks(2)["conditions"]
    own = subject_of(cfg, masks(3))
    cfg = OmegaConf.merge(cfg, {"data": None})
    told = _protocol(cfg, own, data_for(cfg, own, ALONE), {}, Work(COUNT, 2))["conditions"]["made_by"]
    assert told == {"mask": {"_target_": "latentdiff.data.masks.RandomMasks", "most_boxes": 2}}


class Mean:
    """Of the features; without ``works`` it fails when all images are there."""

    layers, needs_reference = ("pool",), False

    def __init__(self, *, works, settings=0):
        self.works, self.settings = works, settings

    def __call__(self, rows, reference, naming):
        if not self.works:
            raise RuntimeError("a fault in the measure")
        return {naming("mean"): float(rows.column("pool").mean())}

    def check(self, features, count):
        pass

    def describe(self):
        return {"settings": self.settings}


def measured(cfg, subject, where, *measures, features=None):
    metrics = {"m": OnFeatures(features=features or RandomConvFeatures(), measures=measures)}
    data = data_for(cfg, subject, ALONE)
    return measure(cfg, subject, data, metrics, {}, ALONE, where, Console(quiet=True))


def test_images_are_used_again_when_a_measure_failed_and_is_changed(chosen, tmp_path):
    cfg = chosen("controls=false")
    first, second = subject_of(cfg), subject_of(cfg)
    with pytest.raises(RuntimeError, match="a fault in the measure"):
        measured(cfg, first, tmp_path, Mean(works=False))
    found = measured(cfg, second, tmp_path, Mean(works=True, settings=1))
    assert (first.generate.made, second.generate.made) == (COUNT, 0)
    assert found.card["protocol"]["metrics"]["m"]["measures"][0]["settings"] == 1
    assert list(found.results["m"]) == [f"mean_randconv-v1_n{COUNT}"]
    with pytest.raises(InputError, match=r"unfinished work .* protocol\.metrics\.m\.features"):
        measured(cfg, second, tmp_path, Mean(works=True), features=RandomConvFeatures(seed=1))


def test_the_controls_data_count_where_the_captions_are_a_file_s(chosen, tmp_path):
    (tmp_path / "prompts.txt").write_text("a\n" * COUNT)

    def determining(**places):
        cfg = chosen(**places)
        subject = subject_of(cfg, samples=PromptFile(tmp_path / "prompts.txt"), reconstruct=Stand())
        data = data_for(cfg, subject, ALONE)
        return _determining(cfg, subject, data, _planned(cfg, subject, data, {}, ALONE, tmp_path))

    one, other = determining(), determining(val="first")
    assert one["protocol"] == other["protocol"]
    assert one == determining()
    assert one["controls"] != other["controls"]


class Captioned(RandomConvFeatures):
    """With the columns of a network that reads captions."""

    def __init__(self):
        super().__init__()
        self.layers = {**self.layers, "text": 256, "caption_cut": 1}


@pytest.mark.parametrize("prompts", [False, True])
def test_a_missing_caption_is_found_before_any_image(chosen, tmp_path, monkeypatch, prompts):
    (tmp_path / "prompts.txt").write_text("a\n" * COUNT)
    metric = OnFeatures(features=Captioned(), measures=[ClipScore()])
    monkeypatch.setattr(evaluation_parts, "metrics_for", lambda cfg, subject: {"clip": metric})

    def loaded(*overrides, val):
        cfg = chosen(*overrides, val=val)
        own = {"samples": PromptFile(tmp_path / "prompts.txt"), "reconstruct": Stand()} if prompts else {}
        monkeypatch.setattr(evaluation_parts, "load_subject", lambda *_: subject_of(cfg, **own))
        parts = load_parts(cfg, ALONE, tmp_path)
        return len(parts.data.val_set)

    assert loaded(val="val") == COUNT
    with pytest.raises(InputError, match=f"{COUNT - 1} of {COUNT} samples have no caption"):
        loaded(val="first")
    if prompts:
        assert loaded("controls=false", val="first") == COUNT

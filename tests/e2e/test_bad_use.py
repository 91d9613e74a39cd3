"""Faulty evaluate.py and sample.py commands: refused as train.py's are, see test_bad_input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Overrides = Callable[..., list[str]]

USE: dict[str, tuple[str, Overrides, str]] = {
    "evaluate: no checkpoint": (
        "evaluate",
        lambda p: [],
        "checkpoint: which one\\? Give one of checkpoint=PATH, images=PATH, pipeline=PATH, card=PATH",
    ),
    "evaluate: no such checkpoint": (
        "evaluate",
        lambda p: ["checkpoint=/no/run"],
        "no checkpoint found under '/no/run'",
    ),
    "evaluate: empty run": (
        "evaluate",
        lambda p: [f"checkpoint={p.home}/empty"],
        "no checkpoint found under '.*empty'",
    ),
    "evaluate: damaged": ("evaluate", lambda p: [f"checkpoint={p.home}/truncated"], "ema.safetensors: [0-9]+ bytes"),
    "evaluate: unreadable": (
        "evaluate",
        lambda p: [f"checkpoint={p.home}/unreadable"],
        "manifest.json' is not readable",
    ),
    "evaluate: no images": (
        "evaluate",
        lambda p: [f"checkpoint={p.ldm}", "num_images=0"],
        "num_images: expected at least 1, got 0",
    ),
    "evaluate: one image": (
        "evaluate",
        lambda p: [f"checkpoint={p.ldm}", "num_images=1"],
        "metrics: 'frechet': num_images: a Fréchet distance needs at least 2 images, got 1",
    ),
    "evaluate: too many images": (
        "evaluate",
        lambda p: [f"checkpoint={p.ldm}", "num_images=17"],
        "num_images: 17 .* 16",
    ),
    "evaluate: unwritable": (
        "evaluate",
        lambda p: [f"checkpoint={p.ldm}", f"run_dir={p.home}/file/results"],
        "run_dir: '.*file/results' cannot be written",
    ),
    "evaluate: two subjects": (
        "evaluate",
        lambda p: [f"checkpoint={p.ldm}", f"images={p.home}/empty"],
        "checkpoint and images: an evaluation is of one of them",
    ),
    "evaluate: a sharded model": (
        "evaluate",
        lambda p: [f"checkpoint={p.ldm}", "trainer=fsdp_cpu"],
        "every process of an evaluation holds the whole model; use trainer=ddp",
    ),
    "evaluate: devices without processes": (
        "evaluate",
        lambda p: [f"checkpoint={p.ldm}", "trainer.devices=2"],
        "2 devices are shared by processes; use trainer=ddp",
    ),
    "evaluate: no such weights": (
        "evaluate",
        lambda p: [f"checkpoint={p.ldm}", "weights=raw"],
        "weights: expected one of ema, model, got 'raw'",
    ),
    "evaluate: no such container": (
        "evaluate",
        lambda p: [f"checkpoint={p.ldm}", "save_samples=jpeg"],
        "save_samples: expected one of null, png, npz, got 'jpeg'",
    ),
    "evaluate: prompts of a first stage": (
        "evaluate",
        lambda p: [f"checkpoint={p.autoencoder}", f"prompts={p.home}/prompts.txt"],
        "prompts: a first stage reads no captions",
    ),
    "evaluate: fewer prompts than images": (
        "evaluate",
        lambda p: [f"checkpoint={p.ldm}", f"prompts={p.home}/prompts.txt", "num_images=3", "metrics=frechet"],
        "num_images: 3 are wanted, but there are 2 samples",
    ),
    "evaluate: prompts without what the metrics read": (
        "evaluate",
        lambda p: [f"checkpoint={p.ldm}", f"prompts={p.home}/prompts.txt", "num_images=2"],
        "metrics: 'captions': caption accuracy reads images of the embedded world",
    ),
    "evaluate: a share that is none": (
        "evaluate",
        lambda p: [f"checkpoint={p.ldm}", "max_duplicates=2"],
        "max_duplicates: expected a share from 0 to 1, got 2",
    ),
    "evaluate: first stage replaced": (
        "evaluate",
        lambda p: [f"checkpoint={p.ldm}", f"first_stage.checkpoint={p.home}/other"],
        "was trained on the first stage [0-9a-f]{12}, '.*other.*' is [0-9a-f]{12}",
    ),
    "evaluate: first stage gone": (
        "evaluate",
        lambda p: [f"checkpoint={p.ldm}", "first_stage.checkpoint=/no/ae"],
        "'/no/ae'.*first_stage.checkpoint=PATH",
    ),
    "evaluate: a metric mistyped": (
        "evaluate",
        lambda p: [f"checkpoint={p.ldm}", "metrics=frechett"],
        "did you mean frechet",
    ),
    "sample: no prompt": (
        "sample",
        lambda p: [f"checkpoint={p.ldm}"],
        r"prompt: which\? The model reads captions",
    ),
    "sample: of stage one": (
        "sample",
        lambda p: [f"checkpoint={p.autoencoder}", "prompt=a red circle"],
        "is a first stage, which makes no images of its own: evaluate.py",
    ),
    "sample: no seeds": (
        "sample",
        lambda p: [f"checkpoint={p.ldm}", "prompt=a", "seeds=[]"],
        "prompt and seeds: at least one",
    ),
    "sample: empty batches": (
        "sample",
        lambda p: [f"checkpoint={p.ldm}", "prompt=a", "batch_size=0"],
        "batch_size: expected at least 1, got 0",
    ),
    "sample: no steps": (
        "sample",
        lambda p: [f"checkpoint={p.ldm}", "prompt=a", "sampler.steps=0"],
        "sampler.steps: expected a whole",
    ),
    "sample: a key that guidance has not": (
        "sample",
        lambda p: [f"checkpoint={p.ldm}", "prompt=a", "+guidance.strength=2"],
        "no 'strength'.*scale",
    ),
    "sample: text for a scale": (
        "sample",
        lambda p: [f"checkpoint={p.ldm}", "prompt=a", "guidance.scale=big"],
        "key guidance.scale: expected float, got 'big'",
    ),
    "evaluate: no captions": (
        "evaluate",
        lambda p: [f"checkpoint={p.ldm}", "data=webdataset", f"data.train={p.home}/uncaptioned", "data.size=16"],
        "samples have no caption .*, first 00000/",
    ),
}

SLOW = {
    "evaluate: a share that is none",
    "evaluate: devices without processes",
    "evaluate: no such container",
    "evaluate: a metric mistyped",
    "evaluate: empty run",
    "evaluate: first stage gone",
    "evaluate: no images",
    "evaluate: unreadable",
    "sample: a key that guidance has not",
    "sample: empty batches",
    "sample: no seeds",
    "sample: no steps",
}
"""Left out of the default suite: others are refused at the same place."""


def cases() -> list:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in USE]


@pytest.mark.parametrize("case", cases())
def test_using_a_checkpoint_is_refused(programs, place, refused, tmp_path: Path, case: str) -> None:
    name, overrides, message = USE[case]
    refused(name, [*programs.use, f"run_dir={tmp_path}", *overrides(place)], message)

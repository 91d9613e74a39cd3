"""sample.py: prompts, classes and pictures to PNG files and a grid.

What is made follows from what the checkpoint reads and what is given: see configs/sample.yaml.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from latentdiff.app.generate import Generator, load_generator
from latentdiff.app.processes import say, warn
from latentdiff.app.ranks import Ranks, launched
from latentdiff.app.run import record as run_record
from latentdiff.app.run import run_dir as runs
from latentdiff.app.run.run_lock import alone_in
from latentdiff.app.sampling import record as sample_record
from latentdiff.app.sampling.grid import GRID, save_first
from latentdiff.app.sampling.images import cut_prompts, image_size, wanted_images
from latentdiff.app.sampling.prompts import read_rows, scenes_of
from latentdiff.app.sampling.request import Reads, Request, check_request, read_request
from latentdiff.app.sampling.work import Work
from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError
from latentdiff.models import token_limit

SIGN = ".fault"
"""In the run directory while one of several processes has failed and the others do not know yet."""
WEIGHTS = ("ema", "model")
OTHERS = {
    "autoencoder": "a first stage, which makes no images of its own: evaluate.py checkpoint=PATH measures it",
    "classifier": "a classifier, which only guides: give it with guidance=classifier guidance.checkpoint=PATH",
}
"""Kinds of checkpoints that sample.py makes nothing with, and what takes them."""
SHOWN = 3
"""Prompts that a warning names."""


def run(cfg: DictConfig) -> None:
    """One image per scene and seed, on any number of processes; ``samples.json`` beside them and each PNG's text say
    what it was made of and by. A run directory in which the same call was killed goes on."""
    cfg, request = _requested(cfg)
    path = _checkpoint(cfg)
    ranks = launched(cfg.trainer)
    generator = load_generator(cfg, path, ranks.device, ranks.precision, weights=cfg.weights)
    if request.size is not None:
        generator = replace(generator, pipeline=generator.pipeline.of_size(request.size))
    reads = Reads.of(generator)
    check_request(request, reads, generator)
    wanted = wanted_images(request, reads, image_size(generator.pipeline))
    entries = sample_record.entries(wanted, cfg.batch_size)
    record = {**sample_record.made_by(cfg, generator, path, request, reads), "images": entries}
    if cfg.card is not None:
        sample_record.check_repeated(cfg.card, record)
    _warn(generator, request, len(wanted), cfg.batch_size, ranks)
    own = runs.prepare(cfg.run_dir, outputs=cfg.paths.outputs, name="samples") if ranks.first else Path()
    where = ranks.broadcast(own)
    with alone_in(where), ranks.together(where / SIGN), _cut_prompts_said():
        if ranks.first:
            run_record.check_own(where, "sample")
        standing = sample_record.take_up(where, record, ranks)
        if ranks.first:
            run_record.keep(where, cfg, program="sample", world_size=ranks.count, device=ranks.device.type)
        Work(generator.pipeline, request, wanted, record, where).do(cfg.batch_size, ranks)
        ranks.barrier()
        if ranks.first:
            shown = save_first(where, wanted, [each["file"] for each in entries], request)
            _tell(where, len(wanted), standing, shown)


def _requested(cfg: DictConfig) -> tuple[DictConfig, Request]:
    """The configuration, of ``cfg.card`` where one is given, and what it asks for."""
    if cfg.card is not None:
        cfg, rows = sample_record.repeated(cfg)
    else:
        rows = None if cfg.prompts is None else read_rows(cfg.prompts)
    if cfg.weights not in WEIGHTS:
        raise InputError(f"weights: expected one of {', '.join(WEIGHTS)}, got '{cfg.weights}'")
    return cfg, read_request(cfg, None if rows is None else scenes_of(rows, cfg))


def _checkpoint(cfg: DictConfig) -> Path:
    path = store.resolve(cfg.checkpoint, prefer=("last", "best"))
    kind = store.read_manifest(path).kind
    if kind in OTHERS:
        raise InputError(f"checkpoint: '{path}' is {OTHERS[kind]}")
    return path


def _warn(generator: Generator, request: Request, count: int, batch_size: int, ranks: Ranks) -> None:
    """Of prompts that have more tokens than the model reads, and of processes without work."""
    if cut := cut_prompts(generator.pipeline, request.scenes):
        named = "; ".join(f"'{text}' ({tokens} tokens)" for text, tokens in cut[:SHOWN])
        more = f" and {len(cut) - SHOWN} more" if len(cut) > SHOWN else ""
        warn(f"the model does not read the end of prompts that are too long: {named}{more}")
    if (batches := -(-count // batch_size)) < ranks.count:
        warn(
            f"{count} images in batches of {batch_size} are work for {batches} of {ranks.count} processes; "
            f"batch_size={-(-count // ranks.count)} is work for all"
        )


@contextmanager
def _cut_prompts_said() -> Iterator[None]:
    """The text encoder need not say again what ``_warn`` has said."""
    log = token_limit.log
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _tell(where: Path, count: int, standing: int, shown: int) -> None:
    before = f" ({standing} stood there)" if standing else ""
    images = "1 image" if count == 1 else f"{count} images"
    say(f"{images}{before} and {GRID}{f' of the first {shown}' if shown < count else ''} in {where}")

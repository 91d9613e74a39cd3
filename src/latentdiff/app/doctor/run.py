"""Whether a training would run on this machine, how long it would take and in how much memory and disk."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from latentdiff.app import build as make
from latentdiff.app.doctor.findings import NOTE, OK, PROBLEM, Finding
from latentdiff.app.doctor.memory import available_memory
from latentdiff.app.doctor.trial import OutOfMemoryError, Trial, scaled_down, train_some
from latentdiff.app.launch import find_configs
from latentdiff.app.run import cached_run, preflight
from latentdiff.app.run import first_stage as stage_one
from latentdiff.app.run.condition_check import check_conditioner
from latentdiff.app.run.summary import held_back, in_short, parameters
from latentdiff.checkpoint.models import load_codec
from latentdiff.checkpoint.space import free_bytes, readable
from latentdiff.config.compose import opened
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.data.datamodule import DataModule
from latentdiff.data.sources import ShapesSource
from latentdiff.models.autoencoder.codec import LatentCodec

FirstStage = stage_one.Named | stage_one.Automatic | None

LEAST_BYTES = 16
"""Of a trained parameter: weight, gradient, average and one state of the optimiser, float32 each."""
TRIAL_SAMPLES = 256
"""Of the embedded data, drawn for a trial where the set is not there yet."""


def examine_run(cfg: DictConfig, *, steps: int) -> Iterator[Finding]:
    """``steps`` 0: nothing is tried. Raises InputError where train.py would refuse the configuration."""
    cache = cached_run.opened(cfg)
    first = _preflight(cfg)
    yield Finding(OK, "configuration", f"{cfg.experiment}: composed and checked as train.py would")
    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        yield Finding(PROBLEM, "device", "the trainer wants a GPU and torch sees none; choose trainer=cpu")
        return
    with tempfile.TemporaryDirectory() as scratch:
        share = cfg.global_batch // make.world_size(cfg)
        small = scaled_down(cfg, global_batch=share, steps=max(steps, 2))
        try:
            data, found = _data(cfg, small, Path(scratch))
            yield found
            if (text := None if found.level == NOTE else held_back(data)) is not None:
                yield Finding(NOTE, "validation", text)
            codec, found = _codec(cfg, first, data)
            if found is not None:
                yield found
            if (found := _too_large(cfg)) is not None:
                yield found
                return
            module = _module(small, cache, codec, data)
        except InputError as error:
            yield Finding(PROBLEM, "parts", str(error))
            return
        yield Finding(OK, "parameters", parameters(module))
        if steps:
            yield from _tried(cfg, small, module, data, steps)
        else:
            yield Finding(NOTE, "trial", "none (--steps 0): nothing is known of time and memory")


def _preflight(cfg: DictConfig) -> FirstStage:
    """What train.py checks before it opens the data; puts the shape of the latents into the configuration."""
    preflight.check_numbers(cfg)
    preflight.check_optimizers(cfg)
    preflight.check_task(cfg)
    first: FirstStage = None
    if cfg.first_stage is not None:
        with opened(find_configs("train")):
            first = stage_one.planned(cfg, None)
    preflight.check_latents(cfg, first.latent if first else stage_one.latent_shape(cfg.autoencoder))
    if first is not None:
        preflight.check_loss(cfg)
    if preflight.kind_of(cfg) == "diffusion":
        preflight.check_backbone(cfg, resumed=False)
        preflight.check_sampling(cfg)
    return first


def _data(cfg: DictConfig, small: DictConfig, scratch: Path) -> tuple[DataModule, Finding]:
    """The data of a trial, set up: the run's own, or a few samples of the embedded world where it is not drawn yet."""
    own = build(cfg.data.module)
    drawn = isinstance(own.source, ShapesSource) and not own.source.folder.exists()
    if drawn:
        small.data.module.source.root = str(scratch)
        small.data.module.source.train_samples = max(TRIAL_SAMPLES, small.global_batch)
        small.data.module.source.val_samples = 16
    data = build(small.data.module)
    if drawn:
        data.prepare_data()
    data.setup()
    if drawn:
        text = f"the embedded set is drawn on first use into '{own.source.folder}'; the trial has a small one"
        return data, Finding(NOTE, "data", text)
    size = cfg.data.size
    counts = f"{len(data.train_set):,} training, {len(data.val_set):,} validation images, used at {size} px"
    return data, Finding(OK, "data", f"{data.source.name}: {counts}")


def _codec(cfg: DictConfig, first: FirstStage, data: DataModule) -> tuple[LatentCodec | None, Finding | None]:
    """The first stage, or one of its architecture with random weights where it has to be trained before."""
    if first is None:
        return None, None
    path = first.path if isinstance(first, stage_one.Named) else first.found(data.fingerprint())
    if path is not None:
        return load_codec(path, statistics=first.statistics), Finding(OK, "first stage", f"'{path}'")
    wanted = first.config
    text = (
        f"none for this data yet: '{wanted.experiment}' is trained first, {wanted.max_batches:,} batches of "
        f"{wanted.global_batch}; what follows is without that (latentdiff doctor experiment={wanted.experiment})"
    )
    codec = LatentCodec(autoencoder=build(wanted.autoencoder), mean=0.0, std=1.0)
    return codec, Finding(NOTE, "first stage", text)


def _too_large(cfg: DictConfig) -> Finding | None:
    """Without building it: whether the state of the network that is trained alone is more than the device has."""
    node = cfg.backbone if preflight.kind_of(cfg) == "diffusion" else cfg.classifier or cfg.autoencoder
    with torch.device("meta"):
        count = sum(p.numel() for p in build(node).parameters())
    on_gpu = make.device_name(cfg.trainer) == "cuda"
    have = torch.cuda.mem_get_info()[0] if on_gpu else available_memory()
    need = LEAST_BYTES * count
    if have is None or need <= have:
        return None
    text = (
        f"{in_short(count)} parameters take at least {readable(need)} with gradients, averages and optimiser, this "
        f"{'GPU' if on_gpu else 'machine'} has {readable(have)} free; nothing was tried"
    )
    sharded = "ModelParallel" in str(cfg.trainer.strategy)
    return Finding(NOTE if sharded else PROBLEM, "memory", text)


def _module(
    small: DictConfig, cache: cached_run.Cache | None, codec: LatentCodec | None, data: DataModule
) -> pl.LightningModule:
    if preflight.kind_of(small) == "diffusion":
        check_conditioner(small, data.preview(2), build if cache is None else cache.conditioner)
    inject = {} if codec is None else {"codec": codec}
    return build(small.task, inject=inject) if cache is None else cache.build_task(small.task, inject)


def _tried(
    cfg: DictConfig, small: DictConfig, module: pl.LightningModule, data: DataModule, steps: int
) -> Iterator[Finding]:
    images = cfg.task.get("micro_batch") or small.global_batch
    try:
        with _quiet():
            trial = train_some(small, module, data, steps=steps)
    except OutOfMemoryError:
        less = max(1, images // 2)
        text = f"there is too little for {images} images at a time; task.micro_batch={less} trains the same with less"
        yield Finding(PROBLEM, "memory", text)
        return
    yield _memory(trial, images)
    yield _time(cfg, trial)
    yield _checkpoints(cfg, trial)


def _memory(trial: Trial, images: int) -> Finding:
    have = torch.cuda.get_device_properties(0).total_memory if trial.device == "cuda" else available_memory()
    where = "on the GPU" if trial.device == "cuda" else "of this process and what Python loads"
    text = (
        f"{readable(trial.peak_bytes)} {where}, measured over {trial.batches} batches, {images} images at a time; "
        f"{readable(trial.state_bytes)} of it are weights, averages and optimiser states"
    )
    tight = have is not None and trial.peak_bytes > 0.9 * have
    return Finding(NOTE if tight else OK, "memory", text + ("; that is nearly all there is" if tight else ""))


def _time(cfg: DictConfig, trial: Trial) -> Finding:
    processes = make.world_size(cfg)
    rate = cfg.global_batch / trial.seconds
    alone = "" if processes == 1 else f", if {processes} processes do not slow each other"
    text = (
        f"{trial.seconds:.3g} s a batch on {trial.device}, {trial.precision}: {rate:.3g} images/s; {cfg.max_batches:,} "
        f"batches take {in_hours(trial.seconds * cfg.max_batches)}{alone}. Timed on {trial.batches - 1} real batches; "
        "validation, pictures and saving come on top"
    )
    return Finding(OK, "time", text)


def _checkpoints(cfg: DictConfig, trial: Trial) -> Finding:
    keep = (OmegaConf.select(cfg, "callbacks.checkpoints.keep") or 1) + 2  # best, and the one that is being written
    need, folder = keep * trial.state_bytes, Path(cfg.run_dir or cfg.paths.outputs)
    free = free_bytes(folder)
    text = f"{readable(trial.state_bytes)} each, {readable(need)} for {keep}; {readable(free)} free for '{folder}'"
    return Finding(OK if free > need else PROBLEM, "checkpoints", text)


def in_hours(seconds: float) -> str:
    """``1 h 40 min``, ``2 min 5 s``: two units at most."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    left, said = max(1, round(seconds)), []
    for unit, size in units:
        if left >= size and len(said) < 2:
            said.append(f"{left // size} {unit}")
            left %= size
        elif said:
            break
    return " ".join(said)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Lightning and torch say of a trainer that is only tried."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)

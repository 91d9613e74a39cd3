"""train.py: one stage, from a composed configuration to a checkpoint."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from latentdiff.app import build as make
from latentdiff.app.processes import FIRST_STAGE, say
from latentdiff.app.run import cached_run, preflight, resume_check
from latentdiff.app.run import first_stage as stage_one
from latentdiff.app.run import record as run_record
from latentdiff.app.run import run_dir as runs
from latentdiff.app.run.condition_check import check_conditioner
from latentdiff.app.run.rank_faults import RankFaults
from latentdiff.app.run.run_lock import alone_in
from latentdiff.app.run.summary import summary
from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign.backbones import load_backbone_weights
from latentdiff.checkpoint.models import first_stage_record, load_codec
from latentdiff.config.instantiate import build
from latentdiff.data.datamodule import DataModule
from latentdiff.training.callbacks.interruption import Stopped
from latentdiff.training.callbacks.run_config import RunConfig
from latentdiff.training.callbacks.validation import was_validated
from latentdiff.training.checkpoint_io import DirectoryCheckpointIO


def run(cfg: DictConfig) -> None:
    """Train what the experiment describes; what can be refused is refused before data are drawn or weights trained."""
    _quiet()
    preflight.check_numbers(cfg)
    preflight.check_optimizers(cfg)
    preflight.check_task(cfg)
    cache = cached_run.opened(cfg)
    where = runs.prepare(cfg.run_dir, outputs=cfg.paths.outputs, name=cfg.experiment)
    cfg.run_dir = str(where)
    with alone_in(where, wait=FIRST_STAGE in os.environ):
        _run(cfg, where, cache)


def _run(cfg: DictConfig, where: Path, cache: cached_run.Cache | None) -> None:
    checkpoint = runs.resume_from(where, cfg.resume)
    if checkpoint is not None:
        resume_check.check_kind(cfg, checkpoint)
    first = None if cfg.first_stage is None else stage_one.planned(cfg, checkpoint)
    preflight.check_latents(cfg, first.latent if first else stage_one.latent_shape(cfg.autoencoder))
    if first is not None:
        preflight.check_loss(cfg)
    if cache is not None:
        cache.check(cfg, first.path, first.statistics)
    if preflight.kind_of(cfg) == "diffusion":
        preflight.check_backbone(cfg, resumed=checkpoint is not None)
        preflight.check_sampling(cfg)
    if checkpoint is not None:
        resume_check.check_config(cfg, checkpoint)
    text = OmegaConf.to_yaml(cfg, resolve=True)
    files = DirectoryCheckpointIO(config=text)
    trainer = make.trainer(cfg, files)
    data = build(cfg.data.module)
    data.prepare_data()
    data.setup()
    files.data = resume_check.position(data)
    if preflight.kind_of(cfg) == "diffusion":
        check_conditioner(cfg, data.preview(2), build if cache is None else cache.conditioner)
    if checkpoint is not None:
        resume_check.check_data(cfg, checkpoint, files.data)
        if not _continues(data, checkpoint, cfg.max_batches, trainer):
            return
    parts = {}
    if first is not None:
        path = first.locate(data.fingerprint())
        files.first_stage = first_stage_record(path, first.statistics)
        parts["codec"] = load_codec(path, statistics=first.statistics)
    torch.manual_seed(cfg.seed)
    module = build(cfg.task, inject=parts) if cache is None else cache.build_task(cfg.task, parts)
    if cfg.init_backbone is not None and checkpoint is None:
        module.start_from(lambda backbone: load_backbone_weights(backbone, cfg.init_backbone))
    if trainer.is_global_zero:
        device = trainer.strategy.root_device.type
        run_record.keep(where, cfg, program="train", world_size=trainer.world_size, device=device)
    say(f"run directory: {where}")
    say(summary(cfg, module=module, data=data, trainer=trainer, first_stage=first and path))
    _fit(trainer, module, data, cfg, checkpoint)


def _fit(
    trainer: pl.Trainer, module: pl.LightningModule, data: DataModule, cfg: DictConfig, checkpoint: Path | None
) -> None:
    """Trains to the end; leaves with the exit code that says why where it was told to stop before."""
    trainer.callbacks += [RankFaults(), RunConfig(config=OmegaConf.to_container(cfg, resolve=True))]
    try:
        trainer.fit(module, datamodule=data, ckpt_path=None if checkpoint is None else str(checkpoint))
    except Stopped as stopped:
        again = "" if cfg.resume != "never" else " and resume=auto"
        advice = f"; the same command with run_dir={cfg.run_dir}{again} goes on from there"
        say(str(stopped) + ("" if FIRST_STAGE in os.environ else advice))
        # Where another process of the run leaves with an error, launchers kill the rest: rank 0 speaks for all.
        sys.exit(stopped.code if trainer.is_global_zero else 0)


def _continues(data: DataModule, checkpoint: Path, max_batches: int, trainer: pl.Trainer) -> bool:
    """Lets ``data`` go on where the checkpoint stopped; False where nothing is left to train or to validate."""
    manifest = store.read_manifest(checkpoint)
    data.start_batch = seen = manifest.counters["batches_seen"]
    if seen > max_batches or (seen == max_batches and (was_validated(manifest.extra) or not trainer.limit_val_batches)):
        say(f"already at {seen} of {max_batches} batches: nothing to do")
        return False
    if seen == max_batches:
        data.max_batches = seen + 1  # Lightning wants a batch at hand; ValidateLast stops before it
    say(f"resuming from {checkpoint} at batch {seen}" + (": its validation is missing" if seen == max_batches else ""))
    return True


def _quiet() -> None:
    """Lightning's advice that does not apply here."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")

"""train.py: one stage, from a composed configuration to a checkpoint."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from latentdiff.app import build as make
from latentdiff.app import first_stage as stage_one
from latentdiff.app import preflight
from latentdiff.app import run_dir as runs
from latentdiff.app.condition_check import check_conditioner
from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign.backbones import load_backbone_weights
from latentdiff.checkpoint.models import first_stage_record, load_codec
from latentdiff.config.instantiate import build
from latentdiff.data.datamodule import DataModule
from latentdiff.training.callbacks.checkpoints import Stopped
from latentdiff.training.checkpoint_io import DirectoryCheckpointIO


def run(cfg: DictConfig) -> None:
    """Train what the experiment describes; what can be refused is refused before data are drawn or weights trained."""
    _quiet()
    preflight.check_numbers(cfg)
    preflight.check_optimizers(cfg)
    preflight.check_task(cfg)
    where = runs.prepare(cfg.run_dir, outputs=cfg.paths.outputs, name=cfg.experiment)
    cfg.run_dir = str(where)
    checkpoint = runs.resume_from(where, cfg.resume)
    if checkpoint is not None:
        preflight.check_kind(cfg, checkpoint)
    first = None if cfg.first_stage is None else stage_one.planned(cfg, checkpoint)
    preflight.check_latents(cfg, first.latent if first else stage_one.latent_shape(cfg.autoencoder))
    if first is not None:
        preflight.check_loss(cfg)
    if preflight.kind_of(cfg) == "diffusion":
        preflight.check_backbone(cfg, resumed=checkpoint is not None)
        preflight.check_sampling(cfg)
    if checkpoint is not None:
        preflight.check_resume(cfg, checkpoint)
    text = OmegaConf.to_yaml(cfg, resolve=True)
    files = DirectoryCheckpointIO(config=text)
    trainer = make.trainer(cfg, files)
    data = build(cfg.data.module)
    data.prepare_data()
    data.setup()
    if preflight.kind_of(cfg) == "diffusion":
        check_conditioner(cfg, data.preview(2))
    if checkpoint is not None and not _continues(data, checkpoint, cfg.max_batches):
        return
    parts = {}
    if first is not None:
        path = first.locate(data.fingerprint())
        files.first_stage = first_stage_record(path, first.statistics)
        parts["codec"] = load_codec(path, statistics=first.statistics)
    torch.manual_seed(cfg.seed)
    module = build(cfg.task, inject=parts)
    if cfg.init_backbone is not None and checkpoint is None:
        module.start_from(lambda backbone: load_backbone_weights(backbone, cfg.init_backbone))
    if trainer.is_global_zero:
        make.save_config(text, where)
        print(f"run directory: {where}", flush=True)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=None if checkpoint is None else str(checkpoint))
    except Stopped as stopped:
        if trainer.is_global_zero:
            print(f"{stopped}; the same command with run_dir={where} goes on from there", flush=True)
        sys.exit(128 + stopped.signal)
    finally:
        _finish_wandb()


def _finish_wandb() -> None:
    """Lightning leaves the W&B run open: the next job of a multirun would go on in it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()


def _continues(data: DataModule, checkpoint: Path, max_batches: int) -> bool:
    """Lets ``data`` go on where the checkpoint stopped; False where nothing is left to train."""
    data.start_batch = store.read_manifest(checkpoint).counters["batches_seen"]
    if data.start_batch >= max_batches:
        print(f"already at {data.start_batch} of {max_batches} batches: nothing to do", flush=True)
        return False
    print(f"resuming from {checkpoint} at batch {data.start_batch}", flush=True)
    return True


def _quiet() -> None:
    """Lightning's advice that does not apply here."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")

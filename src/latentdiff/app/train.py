"""train.py: one stage, from a composed configuration to a checkpoint."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from latentdiff.app import build as make
from latentdiff.app import run_dir as runs
from latentdiff.app.first_stage import locate
from latentdiff.checkpoint import store
from latentdiff.checkpoint.models import load_codec
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.training.callbacks.checkpoints import Stopped

ARCHITECTURE = ("autoencoder", "backbone", "diffusion", "conditioner", "latent")
"""Parts of the configuration that a resumed run must share with its checkpoint."""


def run(cfg: DictConfig) -> None:
    """Train what the experiment describes; everything that can be checked is checked before anything is built."""
    _quiet()
    where = runs.prepare(cfg.run_dir, outputs=cfg.paths.outputs, name=cfg.experiment)
    cfg.run_dir = str(where)
    checkpoint = runs.resume_from(where, cfg.resume)
    world = make.world_size(cfg)
    if cfg.global_batch % world:
        raise InputError(f"global_batch: {cfg.global_batch} cannot be split evenly over {world} processes")
    data = build(cfg.data.module)
    data.prepare_data()
    codec, first_stage = None, None
    if cfg.first_stage is not None:
        path = locate(cfg, data.fingerprint())
        codec = load_codec(path)
        first_stage = {"path": str(path.resolve()), "hash": store.digest(path)}
        cfg.latent.channels, cfg.latent.factor = codec.channels, codec.factor
    module = build(cfg.task, inject={} if codec is None else {"codec": codec})
    _check_size(cfg.data.size, module.latent["factor"])
    text = OmegaConf.to_yaml(cfg, resolve=True)
    if checkpoint is not None:
        _check_resume(cfg, module.kind, checkpoint)
        data.start_batch = store.read_manifest(checkpoint).counters["batches_seen"]
        print(f"resuming from {checkpoint} at batch {data.start_batch}", flush=True)
        if data.start_batch >= cfg.max_batches:
            print(f"already at {data.start_batch} of {cfg.max_batches} batches: nothing to do", flush=True)
            return
    trainer = make.trainer(cfg, config_text=text, first_stage=first_stage)
    if trainer.is_global_zero:
        make.save_config(text, where)
        print(f"run directory: {where}", flush=True)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=None if checkpoint is None else str(checkpoint))
    except Stopped as stopped:
        if trainer.is_global_zero:
            print(f"{stopped}; the same command with run_dir={where} goes on from there", flush=True)
        sys.exit(128 + stopped.signal)


def _check_size(size: int, factor: int) -> None:
    if size % factor:
        near = max(factor, round(size / factor) * factor)
        raise InputError(f"data.size: {size} is not divisible by the autoencoder's factor {factor}; {near} is")


def _check_resume(cfg: DictConfig, kind: str, checkpoint: Path) -> None:
    """Refuses a checkpoint of another architecture, naming each key that differs."""
    store.read_manifest(checkpoint, expect_kind=kind)
    saved = OmegaConf.create(store.load_config(checkpoint))
    differing = [
        f"{key}: {old!r} in the checkpoint, {new!r} now"
        for part in ARCHITECTURE
        for key, old, new in _differences(saved.get(part), cfg.get(part), part)
    ]
    if differing:
        raise InputError(
            f"'{checkpoint}' cannot be resumed with another architecture; start in a new run_dir, or set back\n  "
            + "\n  ".join(differing)
        )


def _differences(old, new, key: str) -> list[tuple[str, object, object]]:
    if isinstance(old, DictConfig) and isinstance(new, DictConfig):
        names = [*old, *(name for name in new if name not in old)]
        return [d for name in names for d in _differences(old.get(name), new.get(name), f"{key}.{name}")]
    return [] if old == new else [(key, old, new)]


def _quiet() -> None:
    """Lightning's advice that does not apply here."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")

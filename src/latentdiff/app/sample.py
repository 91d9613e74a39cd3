"""sample.py: prompts to PNG files and a grid."""

from __future__ import annotations

import json

import torch
from omegaconf import DictConfig, ListConfig
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentdiff.app import build as make
from latentdiff.app import run_dir as runs
from latentdiff.app.evaluate import load_pipeline
from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError
from latentdiff.evaluation.grid import save_grid
from latentdiff.types import Batch


def run(cfg: DictConfig) -> None:
    """One image per prompt and seed; prompt, seed and settings are in each PNG's text chunks."""
    prompts = list(cfg.prompt) if isinstance(cfg.prompt, ListConfig) else [str(cfg.prompt)]
    if not prompts or not cfg.seeds:
        raise InputError("prompt and seeds: at least one of each is needed, e.g. prompt='a red circle' seeds=[0,1]")
    if cfg.batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, got {cfg.batch_size}")
    path = store.resolve(cfg.checkpoint, prefer=("last", "best"))
    store.read_manifest(path, expect_kind="diffusion")
    device, precision = make.device(cfg.trainer)
    pipeline, _, _ = load_pipeline(cfg, path, device, precision)
    where = runs.prepare(cfg.run_dir, outputs=cfg.paths.outputs, name="samples")
    wanted = [(prompt, seed) for prompt in prompts for seed in cfg.seeds]
    images = []
    for start in range(0, len(wanted), cfg.batch_size):
        part = wanted[start : start + cfg.batch_size]
        batch = Batch(keys=[str(start + i) for i in range(len(part))], caption=[prompt for prompt, _ in part])
        images.append(pipeline(batch, seeds=[seed for _, seed in part]).cpu())
    stacked = torch.cat(images)
    settings = json.dumps({"checkpoint": str(path), **pipeline.describe()})
    for i, ((prompt, seed), image) in enumerate(zip(wanted, stacked)):
        text = PngInfo()
        for name, value in {"prompt": prompt, "seed": str(seed), "latentdiff": settings}.items():
            text.add_itxt(name, value)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(where / f"{i:04d}-seed{seed}.png", pnginfo=text)
    captions = [f"{prompt} ({seed})" for prompt, seed in wanted]
    save_grid(
        where / "grid.png", stacked, captions, columns=max(4, len(cfg.seeds)), scale=max(1, 128 // stacked.shape[-1])
    )
    print(f"{len(wanted)} images and grid.png in {where}", flush=True)

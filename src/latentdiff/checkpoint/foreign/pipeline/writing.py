"""A whole model of another program as a folder of ours, which sample.py and evaluate.py take as a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import OmegaConf

from latentdiff import durable
from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign.backbones import AVERAGED
from latentdiff.checkpoint.foreign.pipeline.whole import Whole
from latentdiff.checkpoint.foreign.saving import save_first_stage
from latentdiff.checkpoint.foreign.text import open_clip
from latentdiff.checkpoint.foreign.unet.node import node as unet_node
from latentdiff.checkpoint.foreign.weights import check_names
from latentdiff.checkpoint.places import CHECKPOINT, FIRST_STAGE, ROOT, TEXT_ENCODER

STEPS, GUIDANCE_SCALE = 50, 7.5
"""Of Stable Diffusion's own sampling."""
DROPPED = 0.1
"""Share of the captions that training left out (Stable Diffusion 1.2 and later, 2)."""

_COUNTERS = dict.fromkeys(store.COUNTERS, 0)


def write(model: Whole, dest: Path) -> None:
    """Writes the new folder ``dest``: ``checkpoints/last`` (stage two), ``first_stage`` (a checkpoint of stage one) and
    ``text_encoder`` (for open_clip). Raises InputError where a part cannot be built here."""
    root = dest.resolve()
    backbone = unet_node(model.unet.architecture, model.unet.path)
    with durable.new_directory(dest) as staged:
        save_first_stage(
            model.first_stage,
            model.statistics,
            staged / FIRST_STAGE,
            data=_data(model.size),
            extra={"imported_from": str(model.path)},
        )
        with durable.new_directory(staged / TEXT_ENCODER) as folder:
            name = open_clip.write(model.text, folder)
        conditioner = {
            "_target_": "latentdiff.conditioning.open_clip_text.OpenClipText",
            "model": name,
            "weights": str(root / TEXT_ENCODER / open_clip.WEIGHTS),
            "model_config": str(root / TEXT_ENCODER),
            "block": model.text.block,
            "pad_with_end": model.text.pad_with_end,
            "drop": DROPPED,
        }
        store.save(
            staged / CHECKPOINT,
            kind="diffusion",
            model={},
            ema=_backbone_weights(model),
            config=OmegaConf.to_yaml(OmegaConf.create(_config(model, backbone, conditioner))),
            counters=_COUNTERS,
            first_stage={"path": str(root / FIRST_STAGE), "hash": store.digest(staged / FIRST_STAGE)},
            latent=model.first_stage.architecture.latent,
            extra={"imported_from": str(model.path), ROOT: str(root)},
        )


def _backbone_weights(model: Whole) -> dict[str, torch.Tensor]:
    """In the precision of the file."""
    own = model.unet.architecture.on_meta().state_dict()
    check_names(own, model.unet.weights, model.unet.path, "the UNet")
    return {f"{AVERAGED}{name}": model.unet.weights[name] for name in own}


def _config(model: Whole, backbone: dict, conditioner: dict) -> dict:
    path, parameterization = model.schedule.path, model.schedule.parameterization
    solver = {"_target_": "latentdiff.diffusion.samplers.ddim.DDIM", "eta": 0.0}
    return {
        "experiment": "imported",
        "data": _data(model.size),
        "latent": model.first_stage.architecture.latent,
        "backbone": backbone,
        "diffusion": {"path": path, "parameterization": parameterization},
        "conditioner": {
            "width": model.text.architecture.width,
            "vector": None,
            "spatial": 0,
            "rows": None,
            "classes": None,
            "reads_captions": True,
            "reads_labels": False,
            "conditions": None,
            "module": conditioner,
        },
        "sampler": {"solver": solver, "grid": dict(model.schedule.grid), "steps": STEPS},
        "guidance": {"_target_": "latentdiff.diffusion.guidance.ClassifierFree", "scale": GUIDANCE_SCALE},
        "task": {
            "denoiser": {
                "_target_": "latentdiff.diffusion.denoiser.Denoiser",
                "backbone": backbone,
                "path": path,
                "parameterization": parameterization,
            },
            "conditioner": conditioner,
        },
    }


def _data(size: int) -> dict:
    """An imported model brings no data: ``module`` is what evaluate.py asks for on its command line."""
    return {"size": size, "module": None, "metrics": {}}

"""CLIP's text encoder in open_clip's layout: what ``conditioning.open_clip_text`` loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from latentdiff.checkpoint.foreign.text.architecture import ForeignText, TextArchitecture

WEIGHTS = "weights.safetensors"

_IMAGE_TOWER = {"image_size": 8, "layers": 1, "width": 8, "head_width": 8, "patch_size": 8}
"""open_clip builds a CLIP whole and ``OpenClipText`` removes its image tower: the smallest one stands in, all zero."""

_LOGIT_SCALE = 2.6592
"""log(1 / 0.07), CLIP's initial value; the text's states do not depend on it."""


def model_name(architecture: TextArchitecture) -> str:
    """Tells every architecture apart, as open_clip keeps one list of models for the whole process."""
    a = architecture
    sizes = f"w{a.width}-l{a.layers}-h{a.heads}-m{a.hidden}-c{a.context_length}-p{a.projection or 0}"
    return f"clip-text-{sizes}-{'quick' if a.quick_gelu else 'gelu'}"


def write(text: ForeignText, folder: Path) -> str:
    """Fills the existing ``folder`` with model configuration and weights; returns the model's name."""
    name = model_name(text.architecture)
    config = model_config(text.architecture)
    (folder / f"{name}.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = text.weights | _stand_in(config["embed_dim"])
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, folder / WEIGHTS)
    return name


def model_config(architecture: TextArchitecture) -> dict:
    """open_clip's configuration of a CLIP with this text encoder."""
    return {
        "embed_dim": architecture.projection or architecture.width,
        "quick_gelu": architecture.quick_gelu,
        "vision_cfg": _IMAGE_TOWER,
        "text_cfg": {
            "context_length": architecture.context_length,
            "vocab_size": architecture.vocabulary,
            "width": architecture.width,
            "heads": architecture.heads,
            "layers": architecture.layers,
            "mlp_ratio": architecture.hidden / architecture.width,
            "proj_type": "none" if architecture.projection is None else "linear",
        },
    }


def _stand_in(embed_dim: int) -> dict[str, Tensor]:
    """Zeros under the names of the image tower, and the scale of CLIP's logits."""
    import open_clip

    text = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
    with torch.device("meta"):
        tower = open_clip.CLIP(embed_dim, vision_cfg=dict(_IMAGE_TOWER), text_cfg=text).visual
    zeros = {f"visual.{name}": torch.zeros(value.shape) for name, value in tower.state_dict().items()}
    return zeros | {"logit_scale": torch.tensor(_LOGIT_SCALE)}

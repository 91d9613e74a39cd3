"""Models of open_clip, with weights by a pretrained tag or from a file."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from latentdiff.config.errors import InputError
from latentdiff.models.hub import check_within_reach
from latentdiff.models.weights import DAMAGED, in_short


def load_open_clip(*, model: str, weights: str, option: str, model_config: str | None = None) -> nn.Module:
    """The whole model, image and text half, in float32 on the CPU.

    Args:
        model: an open_clip model name, e.g. ``ViT-L-14-quickgelu``.
        weights: a pretrained tag of that model (downloaded), or the path of a ``.pt`` or ``.safetensors`` file.
        option: node of the configuration that has ``model`` and ``weights``, for the messages.
        model_config: folder with open_clip model configurations to add, or None.

    Raises:
        InputError: no such model, configurations that cannot be read, or weights that cannot be had, do not fit, or
            were trained with another activation.
    """
    import open_clip

    if model_config is not None:
        _check_configurations(model_config, option)
        open_clip.add_model_config(model_config)
    if model not in open_clip.list_models():
        raise InputError(f"{option}.model: open_clip has no model '{model}'; open_clip.list_models() lists them")
    if not weights:
        raise InputError(f"{option}.weights: name a pretrained tag or a file; without them CLIP is random")
    try:
        if repository := open_clip.get_pretrained_cfg(model, weights).get("hf_hub"):
            check_within_reach("/".join(repository.split("/")[:2]))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            return open_clip.create_model(model, pretrained=weights)
    except UserWarning as error:
        raise InputError(
            f"{option}.model: '{weights}' was trained with another activation than open_clip's {model} computes "
            f"({error}); use {model.removesuffix('-quickgelu')} or {model.removesuffix('-quickgelu')}-quickgelu"
        ) from error
    except (*DAMAGED, StopIteration, SafetensorError) as error:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise InputError(
            f"{option}.weights: could not load '{weights}' for open_clip's {model} "
            f"({type(error).__name__}: {in_short(error)}). "
            f"Give one of the tags {tags} on a machine that can download it, or the path of a file: fetch "
            "open_clip_pytorch_model.bin or .safetensors of that tag from its page on the Hugging Face hub"
        ) from error


def _check_configurations(folder: str, option: str) -> None:
    """open_clip keeps the folder for good, and would fail at the same file for every later model."""
    files = sorted(Path(folder).glob("*.json"))
    if not files:
        raise InputError(f"{option}.model_config: '{folder}' is no folder with .json files of open_clip's kind")
    for file in files:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{option}.model_config: '{file}' cannot be read as JSON ({error}); mend it") from error
        if not isinstance(found, dict):
            raise InputError(
                f"{option}.model_config: '{file}' holds no mapping; expected embed_dim, vision_cfg, text_cfg"
            )

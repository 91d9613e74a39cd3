"""CLIP's text encoder in the layout of transformers: a folder with ``config.json`` and the weights."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from latentdiff.checkpoint.foreign.diffusers_config import CONFIG
from latentdiff.checkpoint.foreign.json_file import load_json
from latentdiff.checkpoint.foreign.text.architecture import WHAT, ForeignText, infer
from latentdiff.checkpoint.foreign.text.names import (
    HF_PREFIX,
    HF_PROJECTION,
    HF_UNUSED,
    NORM_EPS,
    from_hf,
    hf_names,
    to_hf,
)
from latentdiff.checkpoint.foreign.weights import check_names, open_weights
from latentdiff.config.errors import InputError

WEIGHTS = ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "pytorch_model.fp16.bin")
KIND = "clip_text_model"
START, END = 49406, 49407
"""Tokens around every prompt in CLIP's vocabulary."""

_DEFAULTS = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": NORM_EPS,
}
"""What transformers takes for a key that is not there."""

_ACTIVATIONS = {"quick_gelu": True, "gelu": False}


def read(folder: Path, *, pad_with_end: bool) -> ForeignText:
    """The text encoder in ``folder``; its last block is read, as diffusers' pipelines do.

    Raises InputError where it is none of CLIP's, or the weights are not exactly those of its ``config.json``.
    """
    config = _config(folder / CONFIG)
    file = open_weights(_weights_of(folder))
    tensors = {name.removeprefix(HF_PREFIX): name for name in file.names}
    layers = config["num_hidden_layers"]
    used = {short: name for short, name in tensors.items() if short not in HF_UNUSED}
    check_names(hf_names(layers, projection=HF_PROJECTION in used), used, file.path, WHAT)
    loaded = file.load(list(used.values()))
    weights = from_hf({short: loaded[name] for short, name in used.items()}, layers)
    quick_gelu = _ACTIVATIONS[config["hidden_act"]]
    architecture = infer(weights, file.path, heads=config["num_attention_heads"], quick_gelu=quick_gelu)
    sizes = {
        "hidden_size": architecture.width,
        "intermediate_size": architecture.hidden,
        "max_position_embeddings": architecture.context_length,
        "vocab_size": architecture.vocabulary,
    }
    if wrong := [
        f"{key} {config[key]}, the weights have {found}" for key, found in sizes.items() if config[key] != found
    ]:
        raise InputError(f"'{folder / CONFIG}' says {'; '.join(wrong)}; use files that belong together")
    return ForeignText(file.path, architecture, weights, 1, pad_with_end)


def write(text: ForeignText, folder: Path) -> None:
    """Fills the existing ``folder`` with what transformers loads as a CLIPTextModel: the blocks up to the one read."""
    text = text.until_read()
    architecture = text.architecture
    config = {
        "architectures": ["CLIPTextModel"],
        "bos_token_id": START,
        "eos_token_id": END,
        "hidden_act": "quick_gelu" if architecture.quick_gelu else "gelu",
        "hidden_size": architecture.width,
        "intermediate_size": architecture.hidden,
        "layer_norm_eps": NORM_EPS,
        "max_position_embeddings": architecture.context_length,
        "model_type": KIND,
        "num_attention_heads": architecture.heads,
        "num_hidden_layers": architecture.layers,
        "pad_token_id": END if text.pad_with_end else 0,
        "vocab_size": architecture.vocabulary,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = to_hf(text.weights, architecture.layers)
    tensors = {HF_PREFIX + name: value.contiguous().clone() for name, value in tensors.items()}
    save_file(tensors, folder / WEIGHTS[0], metadata={"format": "pt"})


def _config(path: Path) -> dict:
    config = _DEFAULTS | load_json(path)
    if config.get("model_type") != KIND:
        raise InputError(
            f"'{path}' has the model_type {config.get('model_type')!r}; only CLIP's text encoder ({KIND}) is read"
        )
    counts = [key for key, default in _DEFAULTS.items() if isinstance(default, int)]
    faults = [
        (key, "a whole number of at least 1") for key in counts if type(config[key]) is not int or config[key] < 1
    ]
    if config["hidden_act"] not in list(_ACTIVATIONS):
        faults.append(("hidden_act", " or ".join(_ACTIVATIONS)))
    if config["layer_norm_eps"] != NORM_EPS:
        faults.append(("layer_norm_eps", str(NORM_EPS)))
    if faults:
        told = "; ".join(f"{key}: expected {wanted}, got {config[key]!r}" for key, wanted in faults)
        raise InputError(f"'{path}' describes a text encoder that cannot be built here: {told}")
    return config


def _weights_of(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"'{folder}' has a {CONFIG}, but no weights; expected one of {', '.join(WEIGHTS)} beside it")

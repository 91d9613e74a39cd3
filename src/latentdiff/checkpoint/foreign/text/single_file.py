"""CLIP's text encoder within single files of Stable Diffusion: version 1 in transformers' names, 2 in open_clip's."""

from __future__ import annotations

from torch import Tensor

from latentdiff.checkpoint.foreign.text.architecture import WHAT, ForeignText, infer
from latentdiff.checkpoint.foreign.text.names import (
    HF_PREFIX,
    HF_PROJECTION,
    HF_UNUSED,
    from_hf,
    hf_names,
    to_hf,
)
from latentdiff.checkpoint.foreign.weights import Contents, Shapes, WeightsFile, check_names
from latentdiff.config.errors import InputError

HF, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
PREFIXES = (HF + HF_PREFIX, OPEN_CLIP)

HEADS = "text_heads"
"""Key of the metadata of files that we write: the number of heads."""

_UNUSED = ("logit_scale", "attn_mask")
"""Of open_clip's whole model; its image tower (visual.*) is not used either."""


def holds(file: WeightsFile) -> bool:
    """Whether there is a text encoder of CLIP in ``file``."""
    return any(name.startswith((HF, OPEN_CLIP)) for name in file.names)


def read(file: WeightsFile, *, heads: int | None = None) -> ForeignText:
    """Version 1: OpenAI's CLIP with QuickGELU, the last block is read, prompts are filled up with the end token.
    Version 2: OpenCLIP with GELU, the penultimate block is read, filled up with token 0.

    ``heads`` None: those in the file's metadata, else those of the published model of this width. Raises InputError
    where the tensors are not exactly those of a text encoder, or nothing says the heads.
    """
    heads = heads or _heads(file)
    first = any(name.startswith(HF) for name in file.names)
    weights = _version_1(file) if first else _version_2(file)
    architecture = infer(weights, file.path, heads=heads, quick_gelu=first)
    block = 1 if first else 2
    if architecture.layers < block:
        raise InputError(
            f"'{file.path}': Stable Diffusion 2 reads the penultimate block, its text encoder has only one"
        )
    return ForeignText(file.path, architecture, weights, block, pad_with_end=first)


def contents(text: ForeignText) -> Contents:
    """In the layout of a single file: an encoder with QuickGELU under the names of version 1, others of version 2."""
    first = text.architecture.quick_gelu
    text = text.until_read() if first else text.with_one_behind()
    named = to_hf(text.weights, text.architecture.layers) if first else text.weights
    prefix = HF + HF_PREFIX if first else OPEN_CLIP
    which, block = ("1 (transformers')", "last") if first else ("2 (open_clip's)", "penultimate")
    notes = [f"the text encoder has the names of Stable Diffusion {which}: its {block} block is to be read"]
    if text.pad_with_end != first:
        usual, own = ("the end token", "token 0") if first else ("token 0", "the end token")
        notes.append(f"this model's prompts are filled up with {own}, readers of such files take {usual}")
    tensors = {prefix + name: value.clone() for name, value in named.items()}
    return Contents(tensors, {HEADS: str(text.architecture.heads)}, notes)


def _version_1(file: WeightsFile) -> dict[str, Tensor]:
    names = {name.removeprefix(HF).removeprefix(HF_PREFIX): name for name in file.names if name.startswith(HF)}
    names = {short: name for short, name in names.items() if short not in HF_UNUSED}
    loaded = file.load(list(names.values()))
    found = {short: loaded[name] for short, name in names.items()}
    layers = Shapes(found, file.path, "a text encoder").number("encoder.layers.{}.self_attn.q_proj.weight")
    check_names(hf_names(layers, projection=HF_PROJECTION in found), found, file.path, WHAT)
    return from_hf(found, layers)


def _version_2(file: WeightsFile) -> dict[str, Tensor]:
    names = {name.removeprefix(OPEN_CLIP): name for name in file.names if name.startswith(OPEN_CLIP)}
    used = {short: name for short, name in names.items() if short not in _UNUSED and not short.startswith("visual.")}
    loaded = file.load(list(used.values()))
    return {short: loaded[name] for short, name in used.items()}


def _heads(file: WeightsFile) -> int | None:
    said = file.metadata.get(HEADS, "")
    if said and not (said.isdigit() and int(said)):
        raise InputError(f"'{file.path}': {HEADS} in its metadata should be a number of heads, is {said!r}")
    return int(said) if said else None

"""CLIP's tokenizer in the layout of transformers: its vocabulary is the one that open_clip ships.

open_clip, as CLIP did, first mends the text (ftfy: curly quotes become straight, ligatures letters; HTML's ``&amp;``
becomes ``&``), transformers does not: prompts with such characters have other tokens there. So have those with
exclamation marks where "!" pads (Stable Diffusion 2 in diffusers): transformers then takes each for padding.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from latentdiff.checkpoint.foreign.json_file import load_json
from latentdiff.checkpoint.foreign.text.hf import END, START
from latentdiff.config.errors import InputError

VOCABULARY, MERGES, SETTINGS, SPECIAL = "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"
WHOLE = "tokenizer.json"
"""Vocabulary and merges in one, as newer versions write them."""

_START, _END = "<|startoftext|>", "<|endoftext|>"


def pads_with_end(folder: Path) -> bool:
    """Whether the tokenizer in ``folder`` fills prompts up with the end token (SD 1), else with token 0 (SD 2).

    Raises InputError where there is none, where its vocabulary is another than CLIP's, and for other paddings.
    """
    own, found = clip_vocabulary(), _vocabulary(folder)
    if found != own:
        more = len(found.items() - own.items())
        raise InputError(
            f"the tokenizer in '{folder}' has another vocabulary than CLIP's: {len(found)} tokens, {more} of them not "
            "CLIP's; only CLIP's own is read"
        )
    pad = _token(folder, "pad_token")
    if not isinstance(pad, str) or (number := own.get(pad)) not in (0, END):
        raise InputError(f"the tokenizer in '{folder}' pads with {pad!r}; expected {_END!r} (SD 1) or '!' (SD 2)")
    return number == END


def write(folder: Path, *, pad_with_end: bool, context_length: int) -> None:
    """Fills the existing ``folder`` with what transformers loads as a CLIPTokenizer."""
    special = {"bos_token": _START, "eos_token": _END, "pad_token": _END if pad_with_end else "!", "unk_token": _END}
    settings = {
        **special,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": context_length,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / VOCABULARY).write_text(json.dumps(clip_vocabulary(), ensure_ascii=False), encoding="utf-8")
    (folder / MERGES).write_text("\n".join(["#version: 0.2", *_merges(), ""]), encoding="utf-8")
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / SPECIAL).write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")


@lru_cache(maxsize=1)
def clip_vocabulary() -> dict[str, int]:
    """Token -> its number, under transformers' names of start and end."""
    from open_clip.tokenizer import _tokenizer

    names = {START: _START, END: _END}
    return {names.get(number, token): number for token, number in _tokenizer.encoder.items()}


def _merges() -> list[str]:
    from open_clip.tokenizer import _tokenizer

    return [" ".join(pair) for pair in sorted(_tokenizer.bpe_ranks, key=_tokenizer.bpe_ranks.__getitem__)]


def _vocabulary(folder: Path) -> dict:
    if (folder / VOCABULARY).is_file():
        return load_json(folder / VOCABULARY)
    if not (folder / WHOLE).is_file():
        raise InputError(f"'{folder}' holds no tokenizer: expected {VOCABULARY} or {WHOLE}; copy the folder whole")
    model = load_json(folder / WHOLE).get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    return vocabulary if isinstance(vocabulary, dict) else {}


def _token(folder: Path, name: str) -> str:
    """A special token: transformers' default for CLIP is the end token."""
    for file in (SETTINGS, SPECIAL):
        if (folder / file).is_file() and (found := load_json(folder / file).get(name)) is not None:
            return found["content"] if isinstance(found, dict) and "content" in found else str(found)
    return _END

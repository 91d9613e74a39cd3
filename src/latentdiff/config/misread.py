"""What somebody may have meant who wrote no ``key=value``, or a key as other programs call it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from latentdiff.config.faults import Fault

ELSEWHERE = {
    "batch_size": ("global_batch",),
    "cfg_scale": ("guidance.scale",),
    "ckpt_path": ("resume", "checkpoint"),
    "devices": ("trainer.devices",),
    "epochs": ("max_batches",),
    "image_size": ("data.size",),
    "max_epochs": ("max_batches",),
    "max_steps": ("max_batches",),
    "max_train_steps": ("max_batches",),
    "model": ("backbone", "autoencoder"),
    "num_steps": ("max_batches", "sampler.steps"),
    "num_workers": ("data.workers",),
    "output_dir": ("run_dir",),
    "resolution": ("data.size",),
    "scheduler": ("sampler", "optim.schedule"),
}
"""Names that other trainers and samplers have for keys of ours."""

MOST = 3


def misread(words: Sequence[str], choices: Mapping[str, Sequence[str]]) -> Fault:
    """The fault of arguments that are no settings. ``choices``: group -> its options."""
    names = {option for options in choices.values() for option in options}
    near = [name for word in words for name in get_close_matches(word, names, 1, 0.75)]
    meant = [f"{group}={name}" for name in near for group, options in choices.items() if name in options]
    hint = f"; did you mean {' or '.join(meant[:MOST])}?" if meant else ""
    said = " ".join(f"'{word}'" for word in words)
    return Fault("", f"cannot read {said}: settings are written key=value, without spaces around the ={hint}")

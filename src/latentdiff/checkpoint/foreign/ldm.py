"""Autoencoders in the layout of LDM (arXiv:2112.10752): CompVis' .ckpt files, single files of Stable Diffusion."""

from __future__ import annotations

import json
from pathlib import Path

from latentdiff.checkpoint.foreign.architecture import (
    LDM_GROUPS,
    Architecture,
    Foreign,
    infer,
    of_module,
    published_weights,
)
from latentdiff.checkpoint.foreign.statistics import Statistics, checked
from latentdiff.checkpoint.foreign.weights import Contents, WeightsFile, check_file_name
from latentdiff.config.errors import InputError
from latentdiff.models.autoencoder.autoencoder import Autoencoder

PREFIX = "first_stage_model."
"""Of the autoencoder's tensors in a file that holds more."""

UNUSED = ("loss.", "model_ema.")
"""Tensors that training alone needs: discriminator and LPIPS, and averages that LDM's second stage does not read."""

SCALE = "scale_factor"
"""The tensor in which LDM keeps the scale that it measured (scale_by_std)."""

MEAN, STD = "latent_mean", "latent_std"
"""Keys of the metadata of files that we write: one value per channel as JSON."""


def holds(file: WeightsFile) -> bool:
    """Whether there is an autoencoder in LDM's layout in ``file``."""
    return any(f"{prefix}encoder.down.0.block.0.conv1.weight" in file.names for prefix in (PREFIX, ""))


def read(file: WeightsFile) -> Foreign:
    """The autoencoder in ``file``: what begins with ``first_stage_model.``, else all but the losses.

    Raises InputError where the tensors are not exactly those of an autoencoder, or the scale in it is unusable.
    """
    prefix = PREFIX if any(name.startswith(PREFIX) for name in file.names) else ""
    names = [name for name in file.names if name.startswith(prefix)]
    used = [name for name in names if not name.removeprefix(prefix).startswith(UNUSED) and name != SCALE]
    weights = {name.removeprefix(prefix): value for name, value in file.load(used).items()}
    architecture = infer(weights, file.path)
    return Foreign(file.path, architecture, weights, _statistics(file, architecture.embed_dim))


def write(autoencoder: Autoencoder, statistics: Statistics, dest: Path, *, prefix: str = "") -> list[str]:
    """Writes the autoencoder to the file ``dest``; returns what the reader of the file should know.

    The latent statistics go into the metadata. Raises InputError where LDM's norms cannot be those of the autoencoder;
    what else LDM has no option for is said.
    """
    check_file_name(dest)
    return contents(autoencoder, statistics, prefix=prefix).write(dest)


def contents(autoencoder: Autoencoder, statistics: Statistics, *, prefix: str = "") -> Contents:
    """What ``write`` writes."""
    architecture = of_module(autoencoder)
    if architecture.norm_groups != LDM_GROUPS:
        raise InputError(
            f"the norms of this autoencoder have {architecture.norm_groups} groups, LDM's have {LDM_GROUPS} and no "
            "option for it; export with --format diffusers, which has one"
        )
    tensors = {prefix + name: value for name, value in published_weights(autoencoder).items()}
    metadata = {"format": "pt", MEAN: json.dumps(statistics.mean), STD: json.dumps(statistics.std)}
    return Contents(tensors, metadata, [*_notes(statistics), *_deviations(architecture)])


def _statistics(file: WeightsFile, channels: int) -> Statistics | None:
    if MEAN in file.metadata and STD in file.metadata:
        try:
            mean, std = (list(json.loads(file.metadata[key])) for key in (MEAN, STD))
        except (ValueError, TypeError) as error:
            raise InputError(f"'{file.path}': the latent statistics in its metadata are no lists ({error})") from error
        return checked(mean, std, channels, file.path)
    if SCALE in file.names:
        scale = file.load([SCALE])[SCALE]
        if scale.numel() != 1 or not float(scale) > 0:
            raise InputError(f"'{file.path}': {SCALE} should be one number above 0, it is {scale.tolist()}")
        return checked([0.0] * channels, [1.0 / float(scale)] * channels, channels, file.path)
    return None


def _notes(statistics: Statistics) -> list[str]:
    if statistics.is_one_scale:
        return [f"LDM takes the scale from its own configuration: scale_factor: {1 / statistics.std[0]:.9g}"]
    return [
        "LDM scales all latent channels by one factor and shifts none; the statistics per channel are in the file's "
        f"metadata ({MEAN}, {STD}), which LDM does not read"
    ]


def _deviations(architecture: Architecture) -> list[str]:
    """How LDM's own code differs from ``architecture``."""
    notes = []
    if not (architecture.quant_conv and architecture.post_quant_conv):
        notes.append(
            "LDM's code always has quant_conv and post_quant_conv, which this autoencoder has not both; the file is "
            "for programs that can do without (the layout of SD3 and FLUX)"
        )
    if not architecture.mid_attention:
        notes.append("LDM builds this autoencoder with attn_type: none alone, as it has no attention in the middle")
    return notes

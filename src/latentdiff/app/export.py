"""A first stage in the format of another program."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from omegaconf import OmegaConf
from safetensors import SafetensorError

from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign import diffusers, ldm
from latentdiff.checkpoint.foreign import reading as foreign
from latentdiff.checkpoint.foreign.statistics import Statistics
from latentdiff.checkpoint.models import load_codec
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import load_config

Format = Literal["diffusers", "ldm"]


def export(
    checkpoint: str | Path,
    dest: str | Path,
    *,
    form: Format,
    single_file: bool = False,
    scale: float | None = None,
    shift: float | None = None,
) -> list[str]:
    """Writes the averaged weights of a first stage to ``dest``, a new folder of diffusers or a new .safetensors file in
    LDM's layout, there with ``single_file`` under the names within Stable Diffusion's. Returns what is to be said.

    ``checkpoint`` may also be another program's autoencoder, so that one format becomes the other; ``scale`` and
    ``shift`` are those of its latents, where its files do not say them.

    Raises InputError where ``checkpoint`` is no first stage, the format cannot hold it, or ``dest`` stands already.
    """
    dest = Path(dest)
    if os.path.lexists(dest):
        raise InputError(f"'{dest}' stands already and is not overwritten; name another place, or remove it")
    if single_file and form != "ldm":
        raise InputError("--single-file is for format=ldm: the names within Stable Diffusion's single files")
    statistics, size = None, None
    if foreign.recognises(checkpoint):
        statistics = foreign.read(checkpoint).chosen_statistics(scale=scale, shift=shift)
    else:
        size = _image_size(checkpoint)
        if scale is not None or shift is not None:
            raise InputError("--scale and --shift are for other programs' files; this checkpoint carries its own")
    codec = load_codec(checkpoint, statistics=statistics)
    statistics = statistics or Statistics(tuple(codec.mean.flatten().tolist()), tuple(codec.std.flatten().tolist()))
    try:
        if form == "ldm":
            return ldm.write(codec.autoencoder, statistics, dest, prefix=ldm.PREFIX if single_file else "")
        return diffusers.write(codec.autoencoder, statistics, dest, sample_size=size)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"'{dest}' cannot be written ({why}); name another place") from error


def _image_size(checkpoint: str | Path) -> int | None:
    """That of training."""
    path = store.resolve(checkpoint, prefer=("last", "best"))
    store.read_manifest(path, expect_kind="autoencoder")
    return OmegaConf.select(load_config(path / store.CONFIG), "data.size")

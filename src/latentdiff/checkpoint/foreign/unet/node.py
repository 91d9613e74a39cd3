"""A UNet of another program as a node of our configuration."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from latentdiff.checkpoint.foreign.unet.architecture import UNetArchitecture
from latentdiff.config.errors import InputError


def node(architecture: UNetArchitecture, path: Path) -> dict[str, object]:
    """What ``build`` makes the UNet of; ``architecture`` must know its heads.

    Raises InputError where neither the number nor the width of the heads is the same on all levels.
    """
    settings = {f.name: getattr(architecture, f.name) for f in fields(architecture) if f.name != "heads"}
    settings |= {name: list(value) for name, value in settings.items() if isinstance(value, tuple)}
    numbers, widths = (set(values) - {0} for values in (architecture.heads, architecture.head_widths))
    if len(numbers) == 1:
        heads = {"heads": numbers.pop()}
    elif len(widths) == 1:
        heads = {"head_width": widths.pop()}
    else:
        raise InputError(
            f"'{path}': the attention of its UNet has {architecture.heads} heads from level to level; here either "
            "their number or their width is the same on all levels"
        )
    return {"_target_": "latentdiff.models.backbones.unet.UNet", **settings, **heads}

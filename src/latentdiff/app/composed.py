"""A program's configuration, composed and checked before it runs, and for the verbs of ``latentdiff``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentdiff.config.errors import InputError
from latentdiff.config.faults import Fault, did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from latentdiff.app.schema import Root


def checked(
    configs: Path, config_name: str, program: str, overrides: Sequence[str]
) -> tuple[DictConfig | None, list[Fault]]:
    """The configuration, None where nothing can be composed, and the faults of command line, files and values."""
    from latentdiff.app import schema
    from latentdiff.config.compose import compose
    from latentdiff.config.validate import validate

    schema.register()
    cfg, faults = compose(configs, config_name, overrides)
    root = schema.ROOTS[program]
    if cfg is not None:
        faults = [*faults, *_strange(cfg, root), *validate(cfg, injected=root.injected, runtime=root.runtime)]
    return cfg, list(dict.fromkeys(faults))


def _strange(cfg: DictConfig, root: Root) -> list[Fault]:
    """Root keys that the program does not read: a + before the key, or --config-name, lets them past the schema."""
    known = [field.name for field in dataclasses.fields(root.schema)]
    near = {str(key): did_you_mean(str(key), known) for key in cfg if key not in known}
    return [Fault(key, f"this program reads no such key{hint}; leave it out") for key, hint in near.items()]


def composed(program: str, settings: list[str]) -> DictConfig:
    """As ``program``.py would run with these settings. Raises InputError with all their faults."""
    from latentdiff.app.launch import find_configs
    from latentdiff.config.quoting import quote_overrides

    cfg, faults = checked(find_configs(program), program, program, quote_overrides(settings))
    if faults or cfg is None:
        raise InputError("\n".join(map(str, faults)))
    return cfg

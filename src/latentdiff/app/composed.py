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
    configs: Path, config_name: str, program: str, overrides: Sequence[str], *, runs: bool = False
) -> tuple[DictConfig | None, list[Fault]]:
    """The configuration, None where nothing can be composed, and its faults: all of the command line, the files and
    the root keys; where there is none, of what the program works on, which has to be named if it ``runs`` with this;
    then all of the parts, whose check alone imports torch."""
    from latentdiff.app import schema
    from latentdiff.config.compose import compose
    from latentdiff.config.validate import validate

    schema.register()
    cfg, faults = compose(configs, config_name, overrides)
    if cfg is None:
        return None, list(dict.fromkeys(faults))
    root = schema.ROOTS[program]
    faults = [*faults, *_strange(cfg, root)] or _subject_faults(cfg, root, needed=runs)
    return cfg, list(dict.fromkeys(faults or validate(cfg, injected=root.injected, runtime=root.runtime)))


def _strange(cfg: DictConfig, root: Root) -> list[Fault]:
    """Root keys that the program does not read: a + before the key, or --config-name, lets them past the schema."""
    known = [field.name for field in dataclasses.fields(root.schema)]
    near = {str(key): did_you_mean(str(key), known) for key in cfg if key not in known}
    return [Fault(key, f"this program reads no such key{hint}; leave it out") for key, hint in near.items()]


def _subject_faults(cfg: DictConfig, root: Root, *, needed: bool) -> list[Fault]:
    from omegaconf import OmegaConf

    from latentdiff.checkpoint.lookup import resolve

    given = {key: OmegaConf.select(cfg, key, throw_on_resolution_failure=False) for key in root.subjects}
    try:
        if given.get("checkpoint") is not None:
            resolve(given["checkpoint"])
        elif needed and given and not any(given.values()):
            raise InputError(f"checkpoint: which one? Give one of {', '.join(f'{key}=PATH' for key in given)}")
    except InputError as error:
        return [Fault("", str(error))]
    return []


def composed(program: str, settings: list[str]) -> DictConfig:
    """As ``program``.py would run with these settings. Raises InputError with all their faults."""
    from latentdiff.app.launch import find_configs
    from latentdiff.config.quoting import quote_overrides

    cfg, faults = checked(find_configs(program), program, program, quote_overrides(settings))
    if faults or cfg is None:
        raise InputError("\n".join(map(str, faults)))
    return cfg

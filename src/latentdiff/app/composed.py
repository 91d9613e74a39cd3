"""A program's configuration for the verbs of ``latentdiff`` that take its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentdiff.config.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def composed(program: str, settings: list[str]) -> DictConfig:
    """As ``program``.py would run with these settings. Raises InputError with all their faults."""
    from latentdiff.app import schema
    from latentdiff.app.launch import find_configs
    from latentdiff.config.compose import compose
    from latentdiff.config.quoting import quote_overrides
    from latentdiff.config.validate import validate

    schema.register()
    cfg, faults = compose(find_configs(program), program, quote_overrides(settings))
    root = schema.ROOTS[program]
    if cfg is not None:
        faults = [*faults, *validate(cfg, injected=root.injected, runtime=root.runtime)]
    if faults or cfg is None:
        raise InputError("\n".join(map(str, dict.fromkeys(faults))))
    return cfg

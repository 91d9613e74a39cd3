"""What a run directory keeps of how it was made: configuration, command line, code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from latentdiff.app.processes import say
from latentdiff.durable import put_file
from latentdiff.evaluation.card import environment

CONFIG, OVERRIDES, ENVIRONMENT = "config.yaml", "overrides.yaml", "environment.json"


def keep(where: Path, cfg: DictConfig, *, program: str, world_size: int = 1, device: str = "cpu") -> None:
    """Writes the resolved configuration, the overrides of the command line, and versions, commit and hardware; prints
    the configuration where ``print_config`` says so. Of a run that goes on they are those of its last start."""
    text = OmegaConf.to_yaml(cfg, resolve=True)
    started = {
        "program": program,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "searched": _searched(),
        **environment(world_size, device),
    }
    put_file(where / CONFIG, text.encode())
    put_file(where / OVERRIDES, yaml.safe_dump(_typed(HydraConfig.get().overrides.task), allow_unicode=True).encode())
    put_file(where / ENVIRONMENT, json.dumps(started, indent=2).encode())
    if cfg.print_config:
        say(text)


def _searched() -> list[str]:
    """Folders of configurations that the command line adds."""
    sources = HydraConfig.get().runtime.config_sources
    return [f"{each.schema}://{each.path}" for each in sources if each.provider.endswith("command-line")]


def _typed(overrides: Iterable[str]) -> list[str]:
    """Without those that Lightning adds for the processes of the other devices."""
    return [str(line) for line in overrides if not line.startswith("hydra.")]

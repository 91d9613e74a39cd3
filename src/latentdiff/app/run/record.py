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
from latentdiff.config.errors import InputError
from latentdiff.durable import put_file
from latentdiff.evaluation.card import environment

CONFIG, OVERRIDES, ENVIRONMENT = "config.yaml", "overrides.yaml", "environment.json"
MARKS = {
    "train": ("checkpoints", "metrics.jsonl"),
    "evaluate": ("results.json", "sweep.json"),
    "sample": ("samples.json",),
}
"""What each program alone keeps in its run directory."""


def check_own(where: Path, program: str) -> None:
    """Raises InputError for a directory with what another program keeps there, which ``keep`` would write over."""
    others = [mark for name, marks in MARKS.items() if name != program for mark in marks]
    found = [name for name in others if (where / name).exists()]
    if _program(where) != program:
        found += [name for name in (CONFIG, OVERRIDES, ENVIRONMENT) if (where / name).exists()]
    if found:
        raise InputError(f"run_dir: '{where}' holds {found[0]}, which is not of {program}.py; give another")


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
    put_file(where / ENVIRONMENT, json.dumps(started, indent=2).encode())  # first: it says whose the others are
    put_file(where / CONFIG, text.encode())
    put_file(where / OVERRIDES, yaml.safe_dump(_typed(HydraConfig.get().overrides.task), allow_unicode=True).encode())
    if cfg.print_config:
        say(text)


def _program(where: Path) -> str | None:
    """That has written there; None where nothing says it."""
    try:
        return json.loads((where / ENVIRONMENT).read_text(encoding="utf-8"))["program"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _searched() -> list[str]:
    """Folders of configurations that the command line adds."""
    sources = HydraConfig.get().runtime.config_sources
    return [f"{each.schema}://{each.path}" for each in sources if each.provider.endswith("command-line")]


def _typed(overrides: Iterable[str]) -> list[str]:
    """Without those that Lightning adds for the processes of the other devices."""
    return [str(line) for line in overrides if not line.startswith("hydra.")]

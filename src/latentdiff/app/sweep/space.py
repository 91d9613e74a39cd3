"""SPACE.yaml: what a search varies, what it compares by, and how it chooses; checked as a whole before any work."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from latentdiff.app.composed import checked
from latentdiff.app.sweep.group import takes_group
from latentdiff.app.sweep.objective import check_objective, default_objective, is_maximized
from latentdiff.app.sweep.parameter import Parameter, read_parameter
from latentdiff.config.errors import InputError
from latentdiff.config.faults import did_you_mean
from latentdiff.config.quoting import quote_overrides
from latentdiff.config.sweeps import expand_sweeps

DEFAULTS = {
    "overrides": [],
    "trial_overrides": [],
    "space": None,
    "objective": None,
    "direction": None,
    "trials": None,
    "sampler": "tpe",
    "seed": 0,
    "pruner": None,
}
TRIALS = 20
"""Where the file says nothing; a grid has all its combinations."""
SAMPLERS = ("tpe", "random", "grid")
PRUNERS = {
    "hyperband": {"min_images": None, "reduction": 3},
    "successive_halving": {"min_images": None, "reduction": 3},
    "median": {"min_images": None, "startup": 5},
}
"""Settings of each with their defaults; ``min_images`` has to be given."""
MAXIMIZE = {"minimize": False, "maximize": True, None: None}


@dataclass(frozen=True)
class Pruner:
    """Stops trials that fall behind, none before ``min_images``: ``number`` is the reduction factor of (asynchronous)
    successive halving (arXiv:1810.05934) and Hyperband (arXiv:1603.06560), or the trials before the median counts."""

    name: str
    min_images: int
    number: int


@dataclass(frozen=True)
class Space:
    """``overrides`` are of every trial and of the command for the best setting, ``trial_overrides`` of trials alone.
    ``images``: what the longest trial sees. ``grouped``: whether the trials are to be a group in W&B."""

    overrides: list[str]
    trial_overrides: list[str]
    parameters: Mapping[str, Parameter]
    objective: str
    maximize: bool
    trials: int
    sampler: str
    seed: int
    pruner: Pruner | None
    images: int
    grouped: bool
    outputs: Path
    name: str

    def settings(self, values: Mapping[str, object]) -> dict[str, str]:
        return {key: parameter.text(values[key]) for key, parameter in self.parameters.items()}

    def all_values(self) -> list[dict[str, object]]:
        """Every combination, for the sampler ``grid``."""
        lists = {key: parameter.values() for key, parameter in self.parameters.items()}
        return [dict(zip(lists, values)) for values in itertools.product(*lists.values())]

    def identity(self) -> dict[str, object]:
        """What may not change while a search goes on: not the number of trials."""
        parameters = {key: str(parameter) for key, parameter in self.parameters.items()}
        own = ("overrides", "trial_overrides", "objective", "maximize", "sampler", "seed")
        return {name: getattr(self, name) for name in own} | {"space": parameters, "pruner": str(self.pruner)}


def read_space(path: Path, configs: Path, overrides: Sequence[str], trials: int | None) -> Space:
    """Raises InputError with what is wrong: the file, a key that the configuration has not, a value at an end of a
    range that it does not take, an objective that is not measured.

    Args:
        overrides: of the command line, after those of the file.
        trials: instead of the file's.
    """
    node = _load(path)
    parameters = {key: read_parameter(key, value) for key, value in node["space"].items()}
    fixed, trial = [*node["overrides"], *overrides], node["trial_overrides"]
    cfgs = _composed(configs, [*fixed, *trial], parameters)
    objective, maximize = _objective(node, cfgs)
    count = trials if trials is not None else TRIALS if node["trials"] is None else node["trials"]
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"trials: expected a whole number of at least 1, got {count!r}")
    if node["sampler"] == "grid" and (endless := [key for key, p in parameters.items() if p.values() is None]):
        raise InputError(f"space.{endless[0]}: a grid goes through choice and int alone; list its values with choice")
    if node["sampler"] == "grid":
        combinations = math.prod(len(parameter.values()) for parameter in parameters.values())
        count = combinations if trials is None and node["trials"] is None else min(count, combinations)
    return Space(
        overrides=fixed,
        trial_overrides=trial,
        parameters=parameters,
        objective=objective,
        maximize=maximize,
        trials=count,
        sampler=node["sampler"],
        seed=node["seed"],
        pruner=_pruner(node["pruner"], cfgs),
        images=max(cfg.max_batches * cfg.global_batch for cfg in cfgs),
        grouped=takes_group(cfgs[0], [*fixed, *trial]),
        outputs=Path(cfgs[0].paths.outputs),
        name=str(cfgs[0].experiment),
    )


def _load(path: Path) -> dict:
    try:
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise InputError(f"'{path}' cannot be read: {error}") from error
    if not isinstance(node, dict) or not isinstance(node.get("space"), dict) or not node["space"]:
        raise InputError(f"'{path}': expected a mapping with `space`, key: {{log: [low, high]}} and the like")
    for name in node:
        if name not in DEFAULTS:
            raise InputError(
                f"'{path}': there is no '{name}'{did_you_mean(name, DEFAULTS)}; keys: {', '.join(DEFAULTS)}"
            )
    node = DEFAULTS | node
    for name in ("overrides", "trial_overrides"):
        if not isinstance(node[name], list) or not all(isinstance(line, str) for line in node[name]):
            raise InputError(f"{name}: expected a list of overrides such as experiment=ldm_txt2img, got {node[name]}")
    if node["sampler"] not in SAMPLERS:
        near = did_you_mean(str(node["sampler"]), SAMPLERS)
        raise InputError(f"sampler: there is no '{node['sampler']}'{near}; available: {', '.join(SAMPLERS)}")
    if node["direction"] not in MAXIMIZE:
        raise InputError(f"direction: expected minimize or maximize, got {node['direction']!r}")
    if not isinstance(node["seed"], int) or isinstance(node["seed"], bool) or node["seed"] < 0:
        raise InputError(f"seed: expected a whole number from 0 on, got {node['seed']!r}")
    return node


def _composed(configs: Path, fixed: list[str], parameters: Mapping[str, Parameter]) -> list[DictConfig]:
    """The configurations of the first values, then with one changed at a time, through all ends."""
    from latentdiff.app.run import preflight

    own = ("run_dir=", "resume=", "hydra.", "hydra/")
    if given := [line for line in fixed if line.startswith(own)]:
        raise InputError(f"overrides: '{given[0]}' is the sweep's to give; its folder is --dir")
    ends = [f"{key}=choice({','.join(map(p.text, p.ends()))})" for key, p in parameters.items()]
    cfgs = []
    for line in expand_sweeps(configs, [*quote_overrides(fixed), *ends]):
        cfg, faults = checked(configs, "train", "train", line)
        if faults or cfg is None:
            raise InputError("\n".join(map(str, faults)))
        preflight.check_numbers(cfg)
        preflight.check_optimizers(cfg)
        preflight.check_task(cfg)
        if cfg.trainer.get("max_time") is not None:
            raise InputError(
                "trainer.max_time: a trial that it ends is not measured to its end; leave it out, and make trials "
                "shorter with max_batches in trial_overrides. A search itself may be stopped at any time"
            )
        cfgs.append(cfg)
    return cfgs


def _objective(node: dict, cfgs: list[DictConfig]) -> tuple[str, bool]:
    default, maximize = default_objective(cfgs[0])
    name = node["objective"] or default
    if name is None:
        raise InputError("objective: this experiment has no monitor of its best; give a name in metrics.jsonl")
    check_objective(name, cfgs[0])
    if node["direction"] is not None:
        return name, MAXIMIZE[node["direction"]]
    return name, maximize if name == default else is_maximized(name)


def _pruner(node: object, cfgs: list[DictConfig]) -> Pruner | None:
    if node is None:
        return None
    if not isinstance(node, dict) or len(node) != 1 or not isinstance(next(iter(node.values())), dict):
        raise InputError(f"pruner: expected {{hyperband: {{min_images: N}}}} or the like, got {node}")
    ((name, given),) = node.items()
    if name not in PRUNERS:
        raise InputError(f"pruner: there is no '{name}'{did_you_mean(name, PRUNERS)}; available: {', '.join(PRUNERS)}")
    if unknown := [key for key in given if key not in PRUNERS[name]]:
        raise InputError(f"pruner.{name}: there is no '{unknown[0]}'{did_you_mean(unknown[0], PRUNERS[name])}")
    settings = PRUNERS[name] | given
    for key, value in settings.items():
        least = 2 if key == "reduction" else 0 if key == "startup" else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"pruner.{name}.{key}: expected a whole number of at least {least}, got {value!r}")
    shortest = min(cfg.max_batches * cfg.global_batch for cfg in cfgs)
    if settings["min_images"] >= shortest:
        raise InputError(f"pruner.{name}.min_images: {settings['min_images']} is all that a trial sees ({shortest})")
    if any(cfg.validate_every >= cfg.max_batches for cfg in cfgs):
        raise InputError(
            f"pruner: with validate_every={cfgs[0].validate_every} a trial of max_batches={cfgs[0].max_batches} is "
            "validated at its end alone; add a smaller validate_every to trial_overrides"
        )
    least, number = settings["min_images"], settings.get("reduction", settings.get("startup"))
    return Pruner(name, least, number)

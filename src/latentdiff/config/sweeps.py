"""Overrides with several values, ``key=a,b``: what a multirun goes through."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from hydra import compose as hydra_compose
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from latentdiff.config.compose import COMPOSE_ERRORS, opened
from latentdiff.config.faults import Fault

SWEEP_LIMIT = 32
"""Values of one sweep that are looked at where one is changed at a time."""


def expand_sweeps(configs: Path, overrides: Sequence[str]) -> list[list[str]]:
    """Command lines that together name every value swept over: the first of each, then one changed at a time.

    Of a long sweep the first ``SWEEP_LIMIT``; one that cannot be listed (``interval``) is left out, and lines that
    do not parse stay as they are.
    """
    with opened(configs) as loader:
        choices = [_choices(line, loader) for line in overrides]
    choices = [options for options in choices if options]
    first = [options[0] for options in choices]
    others = [
        [*first[:i], option, *first[i + 1 :]] for i, options in enumerate(choices) for option in dict.fromkeys(options)
    ]
    return [first, *(line for line in others if line != first)]


def sweep_values(
    configs: Path, config_name: str, overrides: Sequence[str]
) -> tuple[list[str], dict[str, list[str]], list[Fault]]:
    """The overrides of a multirun that are the same for all jobs, key -> values of those that are swept over, in the
    order of the line, and faults of the line. ``hydra.sweeper.params`` of the files come before those of the line."""
    with opened(configs) as loader:
        parser, fixed, faults = OverridesParser.create(config_loader=loader), [], []
        swept: dict[str, list[str]] = {}
        own = [line for line in overrides if line.startswith(("hydra.", "hydra/"))]
        try:
            params = hydra_compose(config_name, overrides=own, return_hydra_config=True).hydra.sweeper.get("params")
        except COMPOSE_ERRORS:  # which says more when a job is composed
            params = None
        for line in [*(f"{key}={value}" for key, value in (params or {}).items()), *overrides]:
            try:
                override = parser.parse_overrides([line])[0]
            except HydraException:
                fixed.append(line)  # composing it says what is wrong
                continue
            key = override.get_key_element()
            if not override.is_sweep_override():
                swept.pop(key, None)
                fixed.append(line)
            elif override.is_discrete_sweep():
                swept[key] = list(dict.fromkeys(map(str, override.sweep_string_iterator())))
            else:
                faults.append(
                    Fault(
                        key,
                        f"'{line}' is a range without values to go through; list them, or search it "
                        "with latentdiff sweep",
                    )
                )
        return fixed, swept, faults


def _choices(line: str, loader: ConfigLoader) -> list[str]:
    try:
        override = OverridesParser.create(config_loader=loader).parse_overrides([line])[0]
    except HydraException:
        return [line]
    if not override.is_sweep_override():
        return [line]
    if not override.is_discrete_sweep():
        return []
    values = islice(override.sweep_string_iterator(), SWEEP_LIMIT)
    return [f"{override.get_key_element()}={value}" for value in values]

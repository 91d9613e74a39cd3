"""Results as a file for programs and as a table for people."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.table import Table

from latentdiff.durable import new_file


def write_results(path: str | Path, found: Mapping[str, object]) -> None:
    """``{"results": ..., "card": ...}`` and what stands beside them as strict JSON, whole or not at all.

    Infinities and NaN become strings.
    """
    text = json.dumps(_strict(found), indent=2, allow_nan=False) + "\n"
    with new_file(path) as staged:
        staged.write_text(text, encoding="utf-8")


def results_table(
    results: Mapping[str, object], *, title: str = "results", spread: Mapping[str, object] | None = None
) -> Table:
    """One row per number, nested names joined by dots, with the standard deviation that ``spread`` has for it; lists
    are left to the file."""
    table = Table("metric", title=title, min_width=min(len(title), 80))  # a narrower one breaks its title
    apart = dict(flattened(spread or {}))
    table.add_column("value", justify="right")
    for name, value in flattened(results):
        if not isinstance(value, (list, tuple)):
            sd = apart.get(name)
            table.add_row(name, shown(value) + (f" ± {shown(sd)}" if isinstance(sd, (int, float)) else ""))
    return table


def flattened(results: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted name, value) of every leaf."""
    for name, value in results.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def shown(value: object, *, signed: bool = False) -> str:
    """A number for people: four decimals from 0.1 on, four digits below; ``signed``: with its plus. Else its text."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return str(value)
    sign = "+" if signed else ""
    if isinstance(value, int):
        return f"{value:{sign}d}"
    return f"{value:{sign}.4g}" if 0 < abs(value) < 0.1 else f"{value + 0.0:{sign}.4f}"


def _strict(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value

"""Results as a file for programs and as a table for people."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.table import Table

from latentdiff.durable import new_file


def write_results(
    path: str | Path,
    results: Mapping[str, object],
    card: Mapping[str, object],
    controls: Mapping[str, object] | None = None,
) -> None:
    """``{"results": ..., "card": ...}`` as strict JSON, whole or not at all, with ``"controls"`` where there are some.

    Infinities and NaN become strings.
    """
    found = {"results": results, **({"controls": controls} if controls else {}), "card": card}
    text = json.dumps(_strict(found), indent=2, allow_nan=False) + "\n"
    with new_file(path) as staged:
        staged.write_text(text, encoding="utf-8")


def results_table(results: Mapping[str, object], *, title: str = "results") -> Table:
    """One row per number, nested names joined by dots; lists are left to the file."""
    table = Table("metric", title=title)
    table.add_column("value", justify="right")
    for name, value in flattened(results):
        if isinstance(value, (list, tuple)):
            continue
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    return table


def flattened(results: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted name, value) of every leaf."""
    for name, value in results.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _strict(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value

"""Evaluations side by side, where their protocols allow it."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from latentdiff.config.errors import InputError
from latentdiff.config.faults import did_you_mean
from latentdiff.evaluation.card import SCHEMA
from latentdiff.evaluation.report import flattened, shown

RESULTS = "results.json"
PROTOCOL = "protocol"
PARTS = ("model", PROTOCOL, "observed", "environment", "config")
"""What every card has."""
_ABSENT = object()
"""In the place of a value that a card has not."""
_SHOWN = 60
"""Characters of a value in a message."""


@dataclass(frozen=True)
class Difference:
    """A leaf of the cards that is not the same in all of them. ``key`` is dotted, ``values`` in the cards' order."""

    key: str
    values: tuple[object, ...]

    def __str__(self) -> str:
        return f"{self.key}: {' | '.join(map(_shown, self.values))}"


@dataclass(frozen=True)
class Line:
    """One number of all evaluations, None where one has it not. ``spread``: its standard deviation over repeats."""

    name: str
    values: tuple[float | None, ...]
    spread: tuple[float | None, ...]

    def change(self, i: int) -> float | None:
        """From the first to the i-th."""
        a, b = self.values[0], self.values[i]
        return None if a is None or b is None else b - a

    def change_in_sds(self, i: int) -> float | None:
        """The same in standard deviations of one evaluation, the root mean square of the two; None without repeats."""
        change, a, b = self.change(i), self.spread[0], self.spread[i]
        if change is None or a is None or b is None or a == b == 0:
            return None
        return change / math.sqrt((a * a + b * b) / 2)


def read_results(path: str | Path) -> dict:
    """A ``results.json``, or that of a run directory.

    Raises InputError where there is none, and where its card is of another schema.
    """
    file = Path(path) / RESULTS if Path(path).is_dir() else Path(path)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"'{file}' cannot be read ({error.strerror}); give a {RESULTS} of evaluate.py, or its run directory"
        ) from error
    except ValueError as error:
        raise InputError(f"'{file}' is no JSON ({error}); give a {RESULTS} of evaluate.py") from error
    card = found.get("card") if isinstance(found, dict) else None
    schema = card.get("schema") if isinstance(card, dict) else None
    whole = schema == SCHEMA and isinstance(found.get("results"), dict)
    if not whole or not all(isinstance(card.get(part), dict) for part in PARTS):
        raise InputError(
            f"'{file}' has {'no card' if schema is None else f'a card of schema {schema}'}, a whole one of schema "
            f"{SCHEMA} is wanted; evaluate again with this version"
        )
    return found


def differences(cards: Sequence[Mapping], part: str = PROTOCOL) -> list[Difference]:
    """The leaves of this part of the cards that differ, by name."""
    leaves = [{f"{part}.{key}": value for key, value in _leaves(card.get(part, {}))} for card in cards]
    keys = dict.fromkeys(key for one in leaves for key in one)
    found = [Difference(key, tuple(one.get(key, _ABSENT) for one in leaves)) for key in keys]
    return [each for each in found if any(value != each.values[0] for value in each.values)]


def check_comparable(cards: Sequence[Mapping], permitted: Sequence[str] = ()) -> list[Difference]:
    """The differences of the protocols that ``permitted`` names: keys, each with all that is below it.

    Raises InputError for any other, and for a permitted key that is in none of the cards.
    """
    known = {key for card in cards for key in _with_parents(f"{PROTOCOL}.{key}" for key, _ in _leaves(card[PROTOCOL]))}
    for key in permitted:
        if key not in known:
            raise InputError(f"--differ: no card has '{key}'{did_you_mean(key, sorted(known))}")
    found = differences(cards)
    refused = [each for each in found if not any(_is_below(each.key, key) for key in permitted)]
    if refused:
        listed = "\n".join(f"  {each}" for each in refused)
        raise InputError(
            f"the numbers are not comparable, their protocols differ:\n{listed}\n"
            "evaluate under one protocol, or permit a difference by its name with --differ KEY"
        )
    return found


def lines(found: Sequence[Mapping]) -> list[Line]:
    """Every number that at least one of the ``results.json`` has."""
    results = [dict(_numbers(one["results"])) for one in found]
    spreads = [dict(_numbers(one.get("repeats", {}).get("sd", {}))) for one in found]
    names = dict.fromkeys(name for one in results for name in one)
    return [Line(name, tuple(r.get(name) for r in results), tuple(s.get(name) for s in spreads)) for name in names]


def comparison_table(paths: Sequence[str], found: Sequence[Mapping], permitted: Sequence[Difference] = ()) -> Table:
    """A row per number: each evaluation's, and the difference of each to the first, in standard deviations too where
    there are repeats."""
    letters = string.ascii_uppercase[: len(found)]
    rows = lines(found)
    repeated = [any(row.change_in_sds(i) is not None for row in rows) for i in range(len(found))]
    table = Table("number", title="comparison", caption=_caption(paths, found, permitted), caption_justify="left")
    for letter in letters:
        table.add_column(letter, justify="right")
    for i, letter in list(enumerate(letters))[1:]:
        table.add_column(f"{letter} - A", justify="right")
        if repeated[i]:
            table.add_column("in sds", justify="right")
    for row in rows:
        cells = [_number(value) for value in row.values]
        for i in range(1, len(found)):
            cells.append(_number(row.change(i), signed=True))
            if repeated[i]:
                sds = row.change_in_sds(i)
                cells.append("" if sds is None else f"{sds:+.1f}")
        table.add_row(row.name, *cells)
    return table


def _caption(paths: Sequence[str], found: Sequence[Mapping], permitted: Sequence[Difference]) -> str:
    said = [f"{letter}: {path}" for letter, path in zip(string.ascii_uppercase, paths)]
    for letter, one in zip(string.ascii_uppercase, found):
        if "repeats" in one:
            said.append(f"{letter}: means of {one['repeats'].get('count')} evaluations")
    if permitted:
        said += ["the protocols differ, as permitted:", *(f"  {each}" for each in permitted)]
    return "\n".join(said)


def _leaves(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys and plain values; empty mappings and lists count as values, lists of plain values too."""
    nested = isinstance(value, (list, tuple)) and any(isinstance(child, (Mapping, list, tuple)) for child in value)
    if isinstance(value, Mapping) and value:
        children: Iterable = value.items()
    elif nested:
        children = enumerate(value)
    else:
        yield key, value
        return
    for name, child in children:
        yield from _leaves(child, f"{key}.{name}" if key else str(name))


def _with_parents(keys: Iterable[str]) -> Iterator[str]:
    for key in keys:
        while key:
            yield key
            key = key.rpartition(".")[0]


def _is_below(key: str, parent: str) -> bool:
    return key == parent or key.startswith(f"{parent}.")


def _numbers(results: Mapping) -> Iterator[tuple[str, float]]:
    """Infinities and NaN are strings in the file."""
    for name, value in flattened(results):
        if isinstance(value, str) and value in ("inf", "-inf", "nan"):
            yield name, float(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, value


def _number(value: float | None, *, signed: bool = False) -> str:
    return "" if value is None else shown(value, signed=signed)


def _shown(value: object) -> str:
    text = "absent" if value is _ABSENT else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."

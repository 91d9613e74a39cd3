"""Scenes from a file: what sample.py makes images of, a line or a row each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig

from latentdiff.app.sampling.request import FILES, GIVEN, Scene, scenes_given
from latentdiff.config.errors import InputError
from latentdiff.config.faults import did_you_mean
from latentdiff.data.making.table import Record, read_csv, read_jsonl
from latentdiff.evaluation.prompts import PromptFile

COLUMNS = (*GIVEN, "seed")
TEXTS = ("prompt", "negative_prompt")
TABLES = {".csv": read_csv, ".jsonl": read_jsonl}


@dataclass(frozen=True)
class Row:
    """What is written of one scene; ``source`` says where."""

    source: str
    values: Mapping[str, object]


def read_rows(path: str | Path) -> list[Row]:
    """Of a ``.txt`` file (a prompt per line), a ``.jsonl`` (an object per line) or a ``.csv`` with a line of column
    names: some of ``COLUMNS``, the same in every row. Paths are relative to the file's folder.

    Raises InputError, with the line where there is one: a file that cannot be read or is empty, lines that are no
    objects or have not a cell for each column, empty cells, columns that are unknown or missing.
    """
    path = Path(path)
    if path.suffix == ".txt":
        captions = PromptFile(path).captions
        return [Row(f"prompts: {path.name} line {i}", {"prompt": text}) for i, text in enumerate(captions, start=1)]
    if path.suffix not in TABLES:
        raise InputError(f"prompts: '{path}': expected a .txt file with a prompt per line, a .jsonl or a .csv")
    try:
        rows = [_row(record, path.parent) for record in TABLES[path.suffix](path)]
    except OSError as error:
        raise InputError(f"prompts: '{path}' cannot be read ({error.strerror})") from error
    except InputError as error:
        raise error if str(error).startswith("prompts: ") else InputError(f"prompts: {error}") from error
    if not rows:
        raise InputError(
            f"prompts: '{path}' holds no rows; expected one per scene, with columns of {', '.join(COLUMNS)}"
        )
    for row in rows:
        if other := set(row.values) ^ set(rows[0].values):
            raise InputError(f"{row.source}: {' and '.join(sorted(other))} must be in all rows or in none")
    return rows


def scenes_of(rows: Sequence[Row], cfg: DictConfig) -> list[Scene]:
    """One of each row, with what ``cfg`` gives for all of them.

    Raises InputError for a value of another type than its column, and for what is given twice or in a list.
    """
    given = scenes_given(cfg)
    if len(given) > 1:
        raise InputError("prompts: lists of values and a file of rows do not go together; write all into the file")
    for name in rows[0].values:
        if (cfg.seeds if name == "seed" else getattr(given[0], name)) is not None:
            key = "seeds" if name == "seed" else name
            raise InputError(f"{key}: the file of prompts has a column {name}; leave one of them out")
    return [replace(given[0], **_typed(row), source=row.source) for row in rows]


def _row(record: Record, folder: Path) -> Row:
    place, found = record
    source = f"prompts: {place}"
    if isinstance(found, str):
        raise InputError(f"{source} {found}")
    values = dict(found)
    for name, value in values.items():
        if name not in COLUMNS:
            raise InputError(
                f"{source}: unknown column '{name}'{did_you_mean(name, COLUMNS)}; known are {', '.join(COLUMNS)}"
            )
        if value in (None, "") and not (name in TEXTS and value == ""):
            raise InputError(f"{source}: {name} is empty")
        if name in FILES:
            values[name] = str(folder / str(value))
        elif isinstance(value, str) and name in ("label", "seed") and re.fullmatch(r"-?\d+", value):
            values[name] = int(value)  # a table's cells are texts
        elif isinstance(value, str) and name == "numbers":
            with suppress(ValueError):
                values[name] = float(value)
    return Row(source, values)


def _typed(row: Row) -> dict[str, object]:
    expected = {**dict.fromkeys((*TEXTS, *FILES), (str,)), "label": (int, str), "seed": (int,), "numbers": (int, float)}
    for name, value in row.values.items():
        if type(value) not in expected[name]:
            words = {str: "text", int: "a whole number", float: "a number"}
            kinds = " or ".join(words[kind] for kind in expected[name])
            raise InputError(f"{row.source}: {name}: expected {kinds}, got {value!r}")
    return {name: Path(value) if name in FILES else value for name, value in row.values.items()}

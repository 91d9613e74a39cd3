"""Tables that name image files: CSV, TSV, JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from latentdiff.config.errors import InputError
from latentdiff.data.making.columns import Columns, TableRow
from latentdiff.data.making.source import Row, UnusableRow, stamp

_LONGEST_CELL = 1 << 30
Record = tuple[str, Mapping[str, object] | str]
"""(name of the row, its cells by column, or what is wrong with it)."""


class TableSource:
    """The rows of a table of image paths, in its order, held in memory.

    Rows that name the same file are one sample with all their captions; the other columns of the first are kept in
    the ``.json``. Raises InputError where a column is missing or there are no rows.
    """

    classes = None

    def __init__(self, file: Path, records: Iterable[Record], columns: Columns, folder: Path) -> None:
        self.file = file
        self.folder = folder
        records = list(records)
        present = dict.fromkeys(key for _, record in records if isinstance(record, Mapping) for key in record)
        if not records:
            raise InputError(f"{file} has no rows")
        self.columns = columns.among(list(present), str(file))
        self._rows: dict[str, Row] = {}
        for name, record in records:
            self._add(name, record)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, start: int) -> Iterator[Row]:
        yield from list(self._rows.values())[start:]

    def identity(self) -> dict[str, object]:
        columns = [self.columns.image, self.columns.caption, self.columns.label]
        return {"table": stamp(self.file.resolve()), "columns": columns, "folder": str(self.folder.resolve())}

    def _add(self, name: str, record: Mapping[str, object] | str) -> None:
        bad = isinstance(record, str)
        row = UnusableRow(name, "bad row", record) if bad else self.columns.row(name, record, self.folder)
        if not isinstance(row, TableRow):
            self._rows[name] = row
            return
        earlier = self._rows.get(row.image)
        if isinstance(earlier, TableRow):
            self._rows[row.image] = replace(earlier, captions=earlier.captions + row.captions)
        else:
            self._rows[row.image] = replace(row, name=row.image)


def read_csv(file: Path) -> Iterator[Record]:
    """Rows below the line of column names, cells quoted as in RFC 4180; a column without a name is passed over.

    InputError where it is not UTF-8 or a quote is not closed.
    """
    return _separated(file, ",", csv.QUOTE_MINIMAL)


def read_tsv(file: Path) -> Iterator[Record]:
    """As ``read_csv``; quotes are a cell's own, nothing is quoted."""
    return _separated(file, "\t", csv.QUOTE_NONE)


def _separated(file: Path, delimiter: str, quoting: int) -> Iterator[Record]:
    csv.field_size_limit(_LONGEST_CELL)
    with open(file, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter=delimiter, quoting=quoting, strict=True)
        try:
            for cells in reader:
                fault = None
                if None in cells or None in cells.values():
                    fault = f"has not as many cells as there are columns ({len(reader.fieldnames or ())})"
                cells.pop("", None)
                yield f"{file.name} line {reader.line_num}", fault or cells
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(
                f"{file} is not a table in UTF-8 with cells apart by {delimiter!r} (after line {reader.line_num}: "
                f"{error}); in a .csv a cell that begins with a quote ends with one, and quotes inside are doubled"
            ) from error


def read_jsonl(file: Path) -> Iterator[Record]:
    """One JSON object per line; empty lines are passed over. InputError where it is not UTF-8."""
    with open(file, encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file.name} line {number}", _object(line)
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not in UTF-8 ({error})") from error


def _object(line: str) -> Mapping[str, object] | str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"cannot be parsed as JSON ({error})"
    return value if isinstance(value, dict) else f"is no JSON object but {type(value).__name__}"

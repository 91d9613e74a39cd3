"""Parquet files, of image paths or with the image files inside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from latentdiff.config.errors import InputError
from latentdiff.data.making.columns import Columns
from latentdiff.data.making.source import ImageSource, Row, stamp
from latentdiff.data.making.table import Record, TableSource

_BATCH_ROWS = 64


def parquet_source(file: Path, columns: Columns, folder: Path) -> ImageSource:
    """Reads the file's description only where the images are inside, else all of its rows.

    Raises InputError where it is no Parquet file, has no rows or lacks a column, or pyarrow is not installed.
    """
    parquet = _pyarrow_parquet()
    try:
        schema = parquet.read_schema(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is not a readable Parquet file ({error})") from error
    columns = columns.among(schema.names, str(file))
    if str(schema.field(columns.image).type) in ("string", "large_string", "string_view"):
        return TableSource(file, _records(file), columns, folder)
    return ParquetSource(file, columns, folder)


class ParquetSource:
    """The rows of a Parquet file that holds the image files, read a few at a time.

    The image column is binary, or as HuggingFace writes it a struct of 'bytes' and 'path'. Further columns of text and
    numbers are kept in the ``.json``.
    """

    classes = None

    def __init__(self, file: Path, columns: Columns, folder: Path) -> None:
        self.file = file
        self.columns = columns
        self.folder = folder
        self._rows = _pyarrow_parquet().read_metadata(file).num_rows
        if not self._rows:
            raise InputError(f"{file} has no rows")

    def __len__(self) -> int:
        return self._rows

    def rows(self, start: int) -> Iterator[Row]:
        for name, record in _records(self.file, start):
            yield self.columns.row(name, record, self.folder)

    def identity(self) -> dict[str, object]:
        columns = [self.columns.image, self.columns.caption, self.columns.label]
        return {"parquet": stamp(self.file.resolve()), "columns": columns, "folder": str(self.folder.resolve())}


def _records(file: Path, start: int = 0) -> Iterator[Record]:
    with _pyarrow_parquet().ParquetFile(file) as table:
        groups = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
        first = 0
        while groups and first + groups[0] <= start:
            first += groups.pop(0)
        skipped = table.num_row_groups - len(groups)
        for batch in table.iter_batches(_BATCH_ROWS, row_groups=range(skipped, table.num_row_groups)):
            for record in batch.to_pylist():
                if first >= start:
                    yield f"{file.name} row {first}", record
                first += 1


def _pyarrow_parquet():
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("Parquet files need pyarrow; install it with: pip install 'latentdiff[shards]'") from error
    return pyarrow.parquet

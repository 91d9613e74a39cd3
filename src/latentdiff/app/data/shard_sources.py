"""Which source ``latentdiff shards make SOURCE`` means."""

from __future__ import annotations

import argparse
from pathlib import Path

from latentdiff.config.errors import InputError
from latentdiff.data.making.coco import CocoSource
from latentdiff.data.making.columns import Columns
from latentdiff.data.making.folder import FolderSource
from latentdiff.data.making.huggingface import HuggingFaceSource
from latentdiff.data.making.parquet import parquet_source
from latentdiff.data.making.source import ImageSource
from latentdiff.data.making.table import TableSource, read_csv, read_jsonl, read_tsv

_HUB = "hf:"
_OF_TABLES = ("--image-column", "--caption-column", "--label-column")


def open_source(arguments: argparse.Namespace) -> ImageSource:
    """Raises InputError for a source of no known kind, and for options that do not go with its kind."""
    source = Path(arguments.source)
    columns = Columns(arguments.image_column, arguments.caption_column, arguments.label_column)
    if arguments.source.startswith(_HUB):
        _refuse(arguments, "a HuggingFace data set", "--captions", "--images", "--labels")
        return HuggingFaceSource(*_name_and_split(arguments.source.removeprefix(_HUB)), columns)
    if not source.exists():
        raise InputError(f"{source} does not exist; expected a folder or a file, or hf:NAME for a HuggingFace data set")
    if source.is_dir() and Path(arguments.dest).resolve().is_relative_to(source.resolve()):
        raise InputError(f"{arguments.dest} lies inside {source}; name a destination outside of it")
    if source.is_dir() and arguments.captions:
        _refuse(arguments, "a folder with a table of captions", "--images", "--labels")
        return _table(Path(arguments.captions), columns, source)
    if source.is_dir():
        _refuse(arguments, "a folder without a table (--captions)", "--images", *_OF_TABLES)
        return FolderSource(source, class_folders=arguments.labels == "folders")
    _refuse(arguments, "a file", "--captions", "--labels")
    if source.suffix.lower() == ".json":
        _refuse(arguments, "COCO's annotations", *_OF_TABLES)
        if arguments.images is None:
            raise InputError(f"{source}: COCO's annotations need the folder of their images: --images FOLDER")
        return CocoSource(source, arguments.images)
    return _table(source, columns, Path(arguments.images) if arguments.images else source.parent)


def _table(file: Path, columns: Columns, folder: Path) -> ImageSource:
    if not file.is_file():
        raise InputError(f"{file} is not a file; expected a table: .csv, .tsv, .jsonl or .parquet")
    if not folder.is_dir():
        raise InputError(f"--images: {folder} is not a folder; expected the one that the table's paths are relative to")
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return parquet_source(file, columns, folder)
    readers = {".csv": read_csv, ".tsv": read_tsv, ".jsonl": read_jsonl}
    if suffix not in readers:
        raise InputError(f"{file} is of no known kind; expected .csv, .tsv, .jsonl, .parquet, or .json of COCO")
    return TableSource(file, readers[suffix](file), columns, folder)


def _name_and_split(text: str) -> tuple[str, str | None]:
    if Path(text).is_dir() or ":" not in text:
        return text, None
    name, _, split = text.rpartition(":")
    return name, split


def _refuse(arguments: argparse.Namespace, what: str, *options: str) -> None:
    given = [option for option in options if getattr(arguments, option[2:].replace("-", "_")) is not None]
    if given:
        raise InputError(f"{what} does not go with {', '.join(given)}; leave that away or name another SOURCE")

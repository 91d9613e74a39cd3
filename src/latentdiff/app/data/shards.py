"""``latentdiff shards``: data sets to WebDataset shards, their index, its check, and what is in them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from latentdiff.app.told import counted
from latentdiff.config.errors import InputError

if TYPE_CHECKING:
    from latentdiff.data.damage import ShardDamage

_NAMED = 10
"""Names that a line on the terminal lists."""


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds ``shards`` with its own verbs."""
    shards = verbs.add_parser("shards", help="data sets as WebDataset shards: make, index, verify, stats")
    kinds = shards.add_subparsers(dest="what", required=True)
    _add_make(kinds)
    index = kinds.add_parser("index", help="write the index of shards that came from elsewhere, e.g. img2dataset's")
    _add_urls(index)
    _add_processes(index)
    index.set_defaults(run=_index)
    verify = kinds.add_parser(
        "verify",
        help="hold every byte against the index (remote shards are fetched); exit code 2 where a shard is damaged",
    )
    _add_urls(verify)
    verify.set_defaults(run=_verify)
    stats = kinds.add_parser("stats", help="sizes, captions and classes as tables, and a contact sheet")
    _add_urls(stats)
    stats.add_argument("--out", metavar="DIR", help="folder for contact_sheet.png and stats.json; default: neither")
    stats.add_argument("--images", type=int, default=48, metavar="N", help="on the contact sheet (default: 48)")
    stats.set_defaults(run=_stats)


def _add_urls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("urls", nargs="+", metavar="URLS", help="folders, or patterns like 'data/{00000..00009}.tar'")


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=_at_least_one, metavar="N", help="default: all cores")


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return int(text)


def _add_make(kinds: argparse._SubParsersAction) -> None:
    make = kinds.add_parser(
        "make",
        help="images with captions or classes -> shards in img2dataset's layout, with an index",
        description="The same command goes on where an interrupted one stopped. Rows that give no sample are counted, "
        "and listed in DEST/left_out.jsonl.",
    )
    make.add_argument(
        "source",
        metavar="SOURCE",
        help="folder of images (captions in a .txt or .json beside each); table that names them or, in Parquet, holds "
        "them (.csv, .tsv, .jsonl, .parquet); COCO's captions_*.json; or hf:NAME[:SPLIT], a HuggingFace data set",
    )
    make.add_argument("dest", metavar="DEST", help="new folder for the shards")
    source = make.add_argument_group("source")
    source.add_argument("--captions", metavar="FILE", help="table of captions for a folder, with paths in it")
    source.add_argument("--images", metavar="FOLDER", help="of a table (default: beside it) or COCO: its images")
    for name, usual in (("image", "image, file_name, ..."), ("caption", "caption, text, ...; '' for no captions")):
        source.add_argument(f"--{name}-column", metavar="NAME", help=f"of a table or data set (default: {usual})")
    source.add_argument("--label-column", metavar="NAME", help="of a table or data set: whole numbers or named classes")
    source.add_argument("--labels", choices=("folders",), help="the first folder on the way to an image is its class")
    images = make.add_argument_group("images")
    images.add_argument("--size", type=int, metavar="PX", help="reduce the short side to this where it is larger")
    images.add_argument("--crop", choices=("none", "center"), default="none", help="cut out the centre square first")
    images.add_argument(
        "--format",
        choices=("keep", "jpg", "png", "webp"),
        default="keep",
        help="keep: each file's own. A file that needs no change is stored byte by byte (default: keep)",
    )
    images.add_argument("--quality", type=int, default=95, metavar="1..100", help="of jpg and webp (default: 95)")
    images.add_argument("--min-size", type=int, default=0, metavar="PX", help="leave out images smaller than this")
    images.add_argument("--max-pixels", type=int, default=64_000_000, metavar="N", help="leave out larger ones (64e6)")
    images.add_argument(
        "--duplicates", choices=("drop", "keep"), default="drop", help="images equal byte by byte (default: drop)"
    )
    output = make.add_argument_group("output")
    output.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="1 to 10000 (default: 1000)")
    _add_processes(output)
    make.set_defaults(run=_make)


def _make(arguments: argparse.Namespace) -> None:
    from latentdiff.app.data.shard_sources import open_source
    from latentdiff.data.making.images import Preparation
    from latentdiff.data.making.writer import LEFT_OUT_NAME, make_shards

    source = open_source(arguments)
    preparation = Preparation(
        size=arguments.size,
        crop=arguments.crop == "center",
        format=None if arguments.format == "keep" else arguments.format,
        quality=arguments.quality,
        min_size=arguments.min_size,
        max_pixels=arguments.max_pixels,
    )
    try:
        with _bar("making shards", len(source)) as advance:
            summary = make_shards(
                source,
                arguments.dest,
                preparation=preparation,
                samples_per_shard=arguments.samples_per_shard,
                keep_duplicates=arguments.duplicates == "keep",
                processes=arguments.processes,
                progress=advance,
            )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on behind the last complete shard", file=sys.stderr)
        raise
    resumed = f" ({summary.resumed} of them before the interruption)" if summary.resumed else ""
    shards = counted(summary.shards, "shard")
    print(f"{summary.samples} images{resumed} in {shards}, {_mebibytes(summary.bytes)}: {arguments.dest}")
    _list(summary.notes)
    if summary.notes:
        print(f"all of them: {Path(arguments.dest) / LEFT_OUT_NAME}", file=sys.stderr)


def _list(notes: Sequence[Mapping[str, str]]) -> None:
    from latentdiff.data.shard_table import printable

    for what in dict.fromkeys(note["what"] for note in notes):
        of_kind = [note for note in notes if note["what"] == what]
        print(f"{len(of_kind)} {what}:", file=sys.stderr)
        for note in of_kind[:_NAMED]:
            print(printable(f"  {note['name']}: {note['why']}"), file=sys.stderr)
        if len(of_kind) > _NAMED:
            print(f"  and {len(of_kind) - _NAMED} more", file=sys.stderr)


def _index(arguments: argparse.Namespace) -> None:
    from latentdiff.data.index import index_shards

    with _bar("indexing", None) as advance:
        summary = index_shards(arguments.urls, processes=arguments.processes, progress=advance)
    samples, size = (sum(values) for values in zip(*((info.samples, info.bytes) for info in summary.shards)))
    print(f"{samples} samples in {counted(len(summary.shards), 'shard')}, {_mebibytes(size)}: indexed")
    if summary.without_image:
        print(f"{summary.without_image} keys without an image: no samples", file=sys.stderr)
    if summary.unreadable:
        print(f"{summary.unreadable} images whose header cannot be read", file=sys.stderr)


def _verify(arguments: argparse.Namespace) -> None:
    from latentdiff.data.damage import DamagedShardsError
    from latentdiff.data.shards import verify_shards

    try:
        with _bar("verifying, bytes", None) as advance:
            shards = verify_shards(arguments.urls, fetch=True, progress=advance)
    except DamagedShardsError as error:
        Console().print(_damage_table(error.damaged))
        raise InputError(f"damaged shards: {len(error.damaged)}; fetch or make them again") from error
    unindexed = [path for path, indexed in zip(shards.table.paths, shards.table.indexed) if not indexed]
    if unindexed:
        raise InputError(
            f"{len(unindexed)} shards have no index, first {unindexed[0]}: only their headers were checked; run "
            f"'latentdiff shards index {os.path.dirname(unindexed[0])}'"
        )
    print(f"{len(shards)} samples in {counted(len(shards.table.paths), 'shard')}: as the index says")


def _damage_table(damaged: Sequence[ShardDamage]) -> Table:
    from latentdiff.data.shard_names import is_remote

    table = Table("damaged shard", "", "expected", "got")
    for damage in damaged:
        found = ("cannot be fetched" if is_remote(damage.path) else "missing") if damage.bytes is None else damage.bytes
        name = os.path.join(*Path(damage.path).parts[-2:])
        table.add_row(name, "bytes", str(damage.expected.bytes), str(found))
        if damage.sha256 is not None:
            table.add_row("", "sha256", f"{damage.expected.sha256[:16]}...", f"{damage.sha256[:16]}...")
        table.add_row("", "whole samples", str(damage.expected.samples), str(damage.samples), end_section=True)
    return table


def _stats(arguments: argparse.Namespace) -> None:
    from latentdiff.app.data.shard_stats import show
    from latentdiff.data.shards import open_shards

    shards = open_shards(arguments.urls)
    with _bar("reading", len(shards)) as advance:
        written = show(shards, out=arguments.out, images=arguments.images, progress=advance)
    for path in written:
        print(f"written: {path}")


@contextmanager
def _bar(what: str, total: int | None) -> Iterator:
    """A progress bar on the terminal's error stream; yields what takes (done, total or nothing)."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda done, of=total: progress.update(bar, completed=done, total=of)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"

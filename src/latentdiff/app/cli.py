"""The ``latentdiff`` command: what serves training and evaluation but is neither."""

from __future__ import annotations

import argparse
import sys

from latentdiff.config.errors import InputError


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 0 done, 2 for input that is at fault."""
    parser = argparse.ArgumentParser(prog="latentdiff", description="Tools around latentdiff's training.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    shards = verbs.add_parser("shards", help="data sets as WebDataset shards")
    make = shards.add_subparsers(dest="what", required=True).add_parser(
        "make", help="images with .txt captions beside them -> shards with an index"
    )
    make.add_argument("folder", help="searched with all its subfolders")
    make.add_argument("dest", help="new folder for the shards")
    make.add_argument("--size", type=int, default=None, metavar="PX", help="shrink to this shorter side first")
    make.set_defaults(run=_make_shards)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _make_shards(arguments: argparse.Namespace) -> None:
    from latentdiff.data.folder import make_shards

    summary = make_shards(arguments.folder, arguments.dest, image_size=arguments.size)
    print(f"{summary.written} images in {summary.shards} shards, {summary.bytes / 2**20:.1f} MiB: {arguments.dest}")
    _list("without a caption", summary.without_caption)
    _list("left out", summary.unreadable)


def _list(what: str, names: list[str]) -> None:
    if names:
        more = "" if len(names) <= 10 else f" and {len(names) - 10} more"
        print(f"{len(names)} {what}: {', '.join(names[:10])}{more}", file=sys.stderr)

"""``latentdiff compare``: evaluations side by side, refused where their protocols differ."""

from __future__ import annotations

import argparse

from latentdiff.config.errors import InputError

MOST = 26
"""Evaluations in one table; they are called by letters."""
WIDTH = 160
"""Characters of the table where it is not written to a terminal."""


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds ``compare``."""
    compare = verbs.add_parser(
        "compare",
        help="the numbers of several evaluations as one table, where their protocols are the same",
        description="Refuses evaluations whose protocols differ in any field and names each. Models, environments and "
        "wall times may differ.",
    )
    compare.add_argument("results", nargs="+", metavar="PATH", help="results.json of evaluate.py, or its run directory")
    compare.add_argument(
        "--differ",
        action="append",
        default=[],
        metavar="KEY",
        help="a field of the protocol, and all below it, that may differ, e.g. protocol.generation.guidance.scale; "
        "can be given several times",
    )
    compare.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from latentdiff.evaluation.compare import check_comparable, comparison_table, read_results

    paths = arguments.results
    if not 2 <= len(paths) <= MOST:
        raise InputError(f"compare: give 2 to {MOST} evaluations, got {len(paths)}")
    found = [read_results(path) for path in paths]
    permitted = check_comparable([one["card"] for one in found], arguments.differ)
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    console.print(comparison_table(paths, found, permitted))

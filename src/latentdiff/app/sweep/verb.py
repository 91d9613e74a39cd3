"""``latentdiff sweep``: searches of the configuration, and the reports of searches and multiruns."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from latentdiff.config.errors import InputError

REPORT = "report"


USAGE = (
    "latentdiff sweep SPACE.yaml [--trials N] [--dir DIR] [--jobs K]\n"
    "                        [KEY=VALUE ...]\n"
    "       latentdiff sweep report DIR [--objective NAME]\n"
    "                        [--direction minimize|maximize]"
)


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds ``sweep SPACE.yaml`` and ``sweep report DIR``."""
    sweep = verbs.add_parser(
        "sweep",
        parents=[_options()],
        usage=USAGE,
        help="search a space of settings, each trial a training; `sweep report DIR` reports of it and of multiruns",
        description="Trains the settings that the sampler proposes, stops those that fall behind, and ends with a "
        "report. The same command goes on after a kill; given several times at once, the processes share the trials. "
        "docs/sweeps.md says what SPACE.yaml holds.",
    )
    sweep.add_argument("what", metavar="SPACE.yaml|report", help="the space to search (configs/sweep/), or `report`")
    sweep.add_argument(
        "rest", nargs=argparse.REMAINDER, metavar="KEY=VALUE|DIR", help="overrides of all trials; report: the folder"
    )
    sweep.set_defaults(run=_run)


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--trials", type=int, metavar="N", help="instead of the file's; those already there count")
    options.add_argument("--dir", metavar="DIR", help="default: OUTPUTS/EXPERIMENT/sweep/NAME-OF-SPACE")
    options.add_argument(
        "--jobs", type=int, metavar="K", help="trials beside each other, GPUs in equal parts; default 1"
    )
    options.add_argument("--objective", metavar="NAME", help="report: another name in metrics.jsonl")
    options.add_argument("--direction", choices=("minimize", "maximize"), help="report: of that name")
    return options


def _run(arguments: argparse.Namespace) -> None:
    """Options and overrides may come in any order, which a sub-parser alone does not take."""
    words = argparse.ArgumentParser(prog="latentdiff sweep", parents=[_options()], usage=USAGE)
    words.add_argument("words", nargs="*", metavar="KEY=VALUE|DIR", help="overrides of all trials; report: the folder")
    words.parse_intermixed_args(arguments.rest, namespace=arguments)
    if arguments.what == REPORT:
        _report(arguments)
    else:
        _search(arguments)


def _report(arguments: argparse.Namespace) -> None:
    from latentdiff.app.sweep.report import print_report

    for name in ("trials", "dir", "jobs"):
        if getattr(arguments, name) is not None:
            raise InputError(f"sweep report: --{name} is of a search; leave it out")
    if len(arguments.words) != 1:
        raise InputError("sweep report: give the one folder of a sweep: latentdiff sweep report DIR")
    maximize = None if arguments.direction is None else arguments.direction == "maximize"
    print_report(Path(arguments.words[0]), objective=arguments.objective, maximize=maximize)


def _search(arguments: argparse.Namespace) -> None:
    from latentdiff.app.launch import find_configs
    from latentdiff.app.sweep.devices import shares
    from latentdiff.app.sweep.report import as_typed
    from latentdiff.app.sweep.search import search
    from latentdiff.app.sweep.space import read_space

    if arguments.objective is not None or arguments.direction is not None:
        raise InputError(
            "sweep: objective and direction of a search stand in its file; the options are of sweep report"
        )
    jobs = 1 if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        raise InputError(f"--jobs: expected at least 1, got {jobs}")
    path = Path(arguments.what)
    if not path.is_file():
        raise InputError(f"sweep: there is no file '{path}'; give a SPACE.yaml such as configs/sweep/ldm_txt2img.yaml")
    configs = find_configs("train")
    space = read_space(path, configs, arguments.words, arguments.trials)
    folder = Path(arguments.dir) if arguments.dir else space.outputs / space.name / "sweep" / path.stem
    program = [sys.executable, str(configs.parent / "train.py")]
    given = {"--dir": folder, "--trials": arguments.trials, "--jobs": arguments.jobs}
    options = [str(word) for pair in given.items() if pair[1] is not None for word in pair]
    command = as_typed(["latentdiff", "sweep", str(path), *options, *arguments.words])
    code = search(space, folder, program=program, environments=shares(jobs), command=command)
    if code:
        sys.exit(code)

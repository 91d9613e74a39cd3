"""``latentdiff doctor``: what this machine has, and whether a training would run on it, how long and in how much."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from latentdiff.config.errors import InputError, RunError

if TYPE_CHECKING:
    from latentdiff.app.doctor.findings import Finding

STEPS = 6


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds ``doctor``."""
    doctor = verbs.add_parser(
        "doctor",
        help="this machine, and with experiment=NAME whether that training runs here, how long and in how much memory",
        description="Without settings: versions, extras, devices, memory, disk, weights. With the settings of a "
        "training also that training: its checks, data, first stage, parameters, and a few real steps on this "
        "device, from which time and memory are estimated. Nothing is left behind. Exit code 0, 1 where a problem "
        "would stop the run, 2 where the settings are at fault.",
    )
    doctor.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="experiment=NAME ..., as train.py takes them")
    doctor.add_argument(
        "--steps",
        type=int,
        default=STEPS,
        metavar="N",
        help=f"training steps to try (default: {STEPS}); 0: none",
    )
    doctor.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from latentdiff.app.composed import composed

    if arguments.steps < 0 or arguments.steps == 1:
        raise InputError(f"--steps: expected 0 or at least 2, the first of which is warming up, got {arguments.steps}")
    cfg = composed("train", arguments.settings) if arguments.settings else None

    from latentdiff.app.doctor.machine import examine_machine
    from latentdiff.app.doctor.run import examine_run

    outputs, data = ("outputs", "data") if cfg is None else (cfg.paths.outputs, cfg.paths.data)
    problems = _print(examine_machine(outputs=outputs, data=data))
    if cfg is not None:
        print()
        problems += _print(examine_run(cfg, steps=arguments.steps))
    if problems:
        raise RunError(f"{problems} {'problem' if problems == 1 else 'problems'}, see above")


def _print(findings: Iterable[Finding]) -> int:
    """Each as soon as it is there; how many are problems."""
    from latentdiff.app.doctor.findings import PROBLEM

    problems = 0
    for finding in findings:
        print(finding, flush=True)
        problems += finding.level == PROBLEM
    return problems

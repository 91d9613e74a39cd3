"""What train.py, evaluate.py and sample.py have in common: read, check, run Hydra, and the exit code.

torch is not imported before the command line has been composed without fault.
"""

from __future__ import annotations

import functools
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

import latentdiff
from latentdiff.app import schema
from latentdiff.app.command_line import asks, is_multirun, read_argv
from latentdiff.app.composed import checked
from latentdiff.app.exit_codes import DONE, REFUSED, SIGNALLED, judge, report
from latentdiff.app.help import group_help, program_help
from latentdiff.app.run.rerun import expanded
from latentdiff.app.told import show, shown_at_once
from latentdiff.config.compose import VERSION_BASE, compose
from latentdiff.config.errors import InputError
from latentdiff.config.faults import Fault
from latentdiff.config.sweeps import expand_sweeps

Job = Callable[[DictConfig], None]


def launch(job: Job, config_name: str) -> None:
    """Run ``job`` with the configuration that ``sys.argv`` asks for, and exit with its code. Does not return."""
    sys.exit(run(job, config_name))


def run(job: Job, config_name: str) -> int:
    """``launch`` with the exit code returned."""
    codes: list[int] = []
    try:
        configs = find_configs(config_name)
        schema.register()
        sys.argv = [sys.argv[0], *expanded(sys.argv[1:], config_name)]
        args = read_argv()
        overrides = _with_config_dir(args)
        if args.help:
            return _help(args.overrides, overrides, configs, config_name)
        told = asks(args) or args.cfg is not None
        if is_multirun(args) and not told:
            from latentdiff.app.sweep import grid

            options = [each for each in sys.argv[1:] if each not in (*args.overrides, "-m", "--multirun")]
            command = grid.Command(configs, args.config_name or config_name, config_name, overrides, options)
            return grid.run(job, command)
        faults = _check(args, overrides, configs, config_name)
        if faults:
            report(faults)
            return REFUSED
        program = hydra.main(version_base=VERSION_BASE, config_path=str(configs), config_name=config_name)
        with shown_at_once() if told else nullcontext():
            program(_guarded(job, codes))()
    except BaseException as error:
        if not (isinstance(error, SystemExit) and codes):  # what ended the job has been judged
            codes.append(judge(error))
    return max(codes, default=DONE)


def find_configs(config_name: str) -> Path:
    """The folder ``configs`` beside the running script, else beside the package's source tree."""
    script = Path(sys.argv[0]).resolve().parent
    package = Path(latentdiff.__file__).resolve().parents
    candidates = [folder / "configs" for folder in (script, *package[1:4])]
    for folder in candidates:
        if (folder / f"{config_name}.yaml").is_file():
            return folder
    looked = ", ".join(str(folder) for folder in dict.fromkeys(candidates))
    raise InputError(
        f"there is no configs/{config_name}.yaml (looked at {looked}); run the script in its repository, "
        "installed with: pip install -e ."
    )


def _help(asked: list[str], overrides: list[str], configs: Path, program: str) -> int:
    """Of the program, of groups that are named, or, where settings are given, the configuration that they make."""
    if any("=" in line for line in asked):
        cfg, faults = checked(configs, program, program, overrides)
        if cfg is None or faults:
            report(faults)
            return REFUSED
        show(OmegaConf.to_yaml(cfg))
    elif asked:
        show("\n\n".join(group_help(group, configs) for group in asked))
    else:
        show(program_help(program, configs))
    return DONE


def _check(args: Namespace, overrides: list[str], configs: Path, config_name: str) -> list[Fault]:
    """Faults of what is about to run; information is Hydra's own."""
    if asks(args):
        return []
    if args.cfg is not None:
        line = expand_sweeps(configs, overrides)[0] if is_multirun(args) else overrides
        return compose(configs, args.config_name or config_name, line)[1]
    return checked(configs, args.config_name or config_name, config_name, overrides, runs=True)[1]


def _with_config_dir(args: Namespace) -> list[str]:
    """The overrides of the command line, with the folder of ``--config-dir`` as one."""
    if args.config_path is not None:
        raise InputError("--config-path is not supported; add a folder with --config-dir DIR")
    if args.config_dir is None:
        return list(args.overrides)
    if not Path(args.config_dir).is_dir():
        raise InputError(f"--config-dir: there is no folder '{args.config_dir}'")
    return [*args.overrides, f"hydra.searchpath=[file://{Path(args.config_dir).resolve()}]"]


def _guarded(job: Job, codes: list[int]) -> Job:
    """``job`` with its exit code kept: Hydra would exit with 1 for all that goes wrong."""

    @functools.wraps(job)
    def task(cfg: DictConfig) -> None:
        try:
            job(cfg)
        except BaseException as error:
            codes.append(judge(error))
            if codes[-1] > SIGNALLED:
                raise

    return task

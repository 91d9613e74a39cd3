"""What train.py, evaluate.py and sample.py have in common: quote, check, run Hydra, and the exit code.

torch is not imported before the command line has been composed without fault.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

import latentdiff
from latentdiff.app import schema
from latentdiff.app.processes import is_first
from latentdiff.config.compose import VERSION_BASE, compose, expand_sweeps
from latentdiff.config.errors import InputError, RunError
from latentdiff.config.faults import Fault
from latentdiff.config.quoting import quote_overrides, requote

DONE, FAILED, REFUSED, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
"""Exit codes. Those above SIGNALLED are the shell's: SIGNALLED + 2 for Ctrl-C, + 15 for SIGTERM, and so on."""
SIGNALLED = 128

HELP_WITH = {"train": ("experiment=ldm_txt2img",)}
"""What --help shows the configuration of, where a choice without a default has not been made."""

PROCESS_GROUP = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Set by Lightning for its child processes; the next job of a multirun must not find them."""

Job = Callable[[DictConfig], None]


class JobFailedError(CompactHydraException):
    """A job of a multirun failed; what went wrong has been printed. Hydra prints this one without a traceback."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return type(self), (self.code, str(self))


def launch(job: Job, config_name: str) -> None:
    """Run ``job`` with the configuration that ``sys.argv`` asks for, and exit with its code. Does not return."""
    sys.exit(run(job, config_name))


def run(job: Job, config_name: str) -> int:
    """``launch`` with the exit code returned."""
    codes: list[int] = []
    try:
        configs = find_configs(config_name)
        schema.register()
        args = _quote_argv()
        if args.help and not any(line.startswith("experiment=") for line in args.overrides):
            sys.argv += HELP_WITH.get(config_name, ())
        faults = _check(args, configs, config_name)
        if faults:
            report(faults)
            return REFUSED
        program = hydra.main(version_base=VERSION_BASE, config_path=str(configs), config_name=config_name)
        program(_guarded(job, codes, _options(sys.argv[1:], args.overrides)))()
    except BaseException as error:
        if not (isinstance(error, SystemExit) and any(codes)):  # Hydra's own 1 after jobs that failed
            codes.append(_judge(error))
    worst = max(codes, default=DONE)
    return FAILED if FAILED in codes and worst <= SIGNALLED else worst


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


def report(faults: list[Fault]) -> None:
    """One line per fault on stderr; of a distributed run's processes only the first speaks."""
    if is_first():
        for fault in faults:
            print(f"error: {fault}", file=sys.stderr)


def _quote_argv() -> Namespace:
    """Quote the free texts and paths in ``sys.argv`` in place, and parse it as Hydra will."""
    parser = get_args_parser()
    args = parser.parse_args()
    multirun = _is_multirun(args)
    quoted = quote_overrides(args.overrides, multirun=multirun)
    pending = list(zip(args.overrides, quoted, strict=True))
    for position, argument in enumerate(sys.argv[1:], start=1):
        if pending and argument == pending[0][0]:
            sys.argv[position] = pending.pop(0)[1]
    args.overrides = quoted
    return args


def _is_multirun(args: Namespace) -> bool:
    return args.multirun or any(line.replace("+", "") == "hydra.mode=MULTIRUN" for line in args.overrides)


def _options(argv: list[str], overrides: list[str]) -> list[str]:
    """The options of the command line that a job's child process needs, without overrides and ``-m``."""
    return [argument for argument in argv if argument not in overrides and argument not in ("-m", "--multirun")]


def _check(args: Namespace, configs: Path, config_name: str) -> list[Fault]:
    """Faults of what is about to run; help and information are Hydra's own."""
    if args.help or args.hydra_help or args.info or args.shell_completion or args.experimental_rerun:
        return []
    if args.config_path is not None:
        return [Fault("", "--config-path is not supported; add a folder with --config-dir DIR")]
    overrides = list(args.overrides)
    if args.config_dir is not None:
        if not Path(args.config_dir).is_dir():
            return [Fault("", f"--config-dir: there is no folder '{args.config_dir}'")]
        overrides.append(f"hydra.searchpath=[file://{Path(args.config_dir).resolve()}]")
    lines = expand_sweeps(configs, overrides) if _is_multirun(args) else [overrides]
    composed = [compose(configs, args.config_name or config_name, line) for line in lines]
    faults = [fault for _, found in composed for fault in found]
    if args.cfg is None:
        faults += [fault for cfg, _ in composed if cfg is not None for fault in _validate(cfg, config_name)]
    return list(dict.fromkeys(faults))


def _validate(cfg: DictConfig, config_name: str) -> list[Fault]:
    from latentdiff.config.validate import validate

    root = schema.ROOTS[config_name]
    return validate(cfg, injected=root.injected, runtime=root.runtime)


def _guarded(job: Job, codes: list[int], options: list[str]) -> Job:
    """``job`` such that one failure ends neither a multirun nor the exit code: Hydra would exit with 1 for all."""

    @functools.wraps(job)
    def task(cfg: DictConfig) -> None:
        multirun = HydraConfig.get().mode == RunMode.MULTIRUN
        argv, own = list(sys.argv), {name: os.environ.get(name) for name in PROCESS_GROUP}
        if multirun:  # the processes that Lightning starts run sys.argv: this job only, not the sweep
            sys.argv = [argv[0], *options, *map(requote, HydraConfig.get().overrides.task)]
        try:
            job(cfg)
        except BaseException as error:
            codes.append(_judge(error))
            if codes[-1] > SIGNALLED:
                raise
            if multirun and codes[-1] != DONE:
                number = HydraConfig.get().job.num
                raise JobFailedError(codes[-1], f"error: job {number} failed, see above") from error
        finally:
            sys.argv = argv
            if multirun:
                _leave_process_group(own)

    return task


def _leave_process_group(environment: dict[str, str | None]) -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _judge(error: BaseException) -> int:
    """The exit code that ``error`` stands for; says what it was, once."""
    if isinstance(error, SystemExit):
        return _exit_code(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, JobFailedError):
        return error.code
    if isinstance(error, InputError | RunError):
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exception(error)
        report([Fault("", str(error))])
        return REFUSED if isinstance(error, InputError) else FAILED
    traceback.print_exception(error)
    return FAILED


def _exit_code(error: SystemExit) -> int:
    """Lightning leaves with 1 after Ctrl-C and without a code after SIGTERM."""
    if type(error).__name__ == "SIGTERMException":
        return TERMINATED
    if isinstance(error.__context__, KeyboardInterrupt):
        return INTERRUPTED
    if error.code is None:
        return DONE
    if isinstance(error.code, int):
        return error.code
    print(f"error: {error.code}", file=sys.stderr)
    return FAILED

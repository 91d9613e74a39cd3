"""A multirun, ``train.py -m key=a,b``: one job per combination, each in a folder of its own, run by Hydra's launchers.

The combinations are laid out here and not by Hydra's sweeper, which refuses all jobs where one is at fault, and ends
at the first that fails.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from latentdiff.app.composed import checked
from latentdiff.app.exit_codes import DONE, FAILED, REFUSED, SIGNALLED, judge, report
from latentdiff.app.processes import is_first, say
from latentdiff.app.run import run_dir as runs
from latentdiff.app.sweep import record as record
from latentdiff.app.sweep.grid_job import GridJob
from latentdiff.app.sweep.group import group_override, takes_group
from latentdiff.app.sweep.record import Job, Sweep
from latentdiff.app.sweep.report import as_typed, print_report
from latentdiff.config.compose import opened
from latentdiff.config.errors import InputError
from latentdiff.config.faults import Fault
from latentdiff.config.quoting import quote_overrides
from latentdiff.config.sweeps import sweep_values

IN_THIS_PROCESS = ".BasicLauncher"
OF_HYDRA = ("hydra.", "hydra/")
EXTRAS = {"joblib": "sweep", "submitit_local": "slurm", "submitit_slurm": "slurm"}
"""Launchers that are installed apart."""


@dataclass(frozen=True)
class Command:
    """What was typed: ``overrides`` with their sweeps, and the ``options`` that a job's own processes need too."""

    configs: Path
    config_name: str
    program: str
    overrides: list[str]
    options: list[str]


@dataclass(frozen=True)
class Planned:
    """One combination: its configuration, None where that cannot be composed, and what is wrong with it."""

    settings: Mapping[str, str]
    overrides: list[str]
    cfg: DictConfig | None
    faults: list[Fault]

    @property
    def name(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.settings.items())


def run(job: Callable[[DictConfig], None], command: Command) -> int:
    """Runs every job, whether others fail or not, and reports; the exit code: 0 where all are done, that of a signal
    where one has ended the sweep, 2 where nothing was or could be begun, else 1."""
    planned, faults = _plan(command)
    if faults:
        report(faults)
        return REFUSED
    folder, jobs = _laid_out(command, planned)
    say(f"sweep of {len(jobs)} jobs: {folder}")
    codes = []
    for number, each in jobs.items():
        if each.faults:
            codes.append(REFUSED)
            reason = "; ".join(map(str, each.faults))
            report([Fault("", f"job {number} ({each.name}) is refused: {reason}")])
            if is_first():
                record.put(folder, number, record.REFUSED, reason)
    codes += _launch(job, command, folder, {n: each for n, each in jobs.items() if not each.faults})
    if is_first():
        print_report(folder)
    return _exit_code(codes)


def _plan(command: Command) -> tuple[list[Planned], list[Fault]]:
    """Every combination, the last key changing first, and the faults for which none is run: those that all have."""
    configs, name = command.configs, command.config_name
    fixed, swept, faults = sweep_values(configs, name, command.overrides)
    faults += [
        Fault(key, "Hydra's own settings are the same for all jobs") for key in swept if key.startswith(OF_HYDRA)
    ]
    faults += [fault for line in fixed if (fault := _missing(line)) is not None]
    if faults:
        return [], faults
    say(f"checking {math.prod(map(len, swept.values()))} combinations")
    planned = []
    for values in itertools.product(*swept.values()):
        settings = dict(zip(swept, values))
        own = [*fixed, *(f"{key}={value}" for key, value in settings.items())]
        cfg, found = checked(configs, name, command.program, own, runs=True)
        planned.append(Planned(settings, own, cfg, found or _beforehand(command, cfg)))
    common = [fault for fault in planned[0].faults if all(fault in each.faults for each in planned)]
    if common or all(each.faults for each in planned):
        return [], list(dict.fromkeys(fault for each in planned for fault in each.faults))
    return planned, []


def _missing(line: str) -> Fault | None:
    """A launcher that is not installed."""
    key, _, name = line.partition("=")
    if key != "hydra/launcher" or name not in EXTRAS:
        return None
    from importlib.util import find_spec

    if find_spec(f"hydra_plugins.hydra_{name.partition('_')[0]}_launcher"):
        return None
    return Fault(key, f"'{name}' is not installed; pip install 'latentdiff[{EXTRAS[name]}]'")


def _beforehand(command: Command, cfg: DictConfig | None) -> list[Fault]:
    """What training would refuse at once."""
    if command.program != "train" or cfg is None or cfg.get("optim") is None:
        return []
    from latentdiff.app.run import preflight

    try:
        preflight.check_numbers(cfg)
        preflight.check_optimizers(cfg)
        preflight.check_task(cfg)
    except InputError as error:
        return [Fault("", str(error))]
    return []


def _laid_out(command: Command, planned: Sequence[Planned]) -> tuple[Path, dict[int, Planned]]:
    """The sweep's folder with its record, and the jobs by number, each with its run directory among its overrides.

    A sweep that stands in the folder goes on: jobs of the same settings keep their numbers, and their states where
    nothing else of them has changed; new ones come after them.
    """
    first = next(each for each in planned if each.cfg is not None)
    given = [line for line in planned[0].overrides if line.startswith("run_dir=")]
    own = "run_dir" in planned[0].settings or any("${" in line for line in given)
    folder = runs.made(Path(first.cfg.run_dir) if given and not own else _fresh(command, planned))
    objective, maximize = _objective(command, first.cfg)
    typed = as_typed(["python", f"{command.program}.py", *command.options, "-m", *command.overrides])
    sweep = Sweep(typed, list(planned[0].settings), objective, maximize)
    laid_out = {}
    with record.locked(folder):
        before = record.read(folder) if record.exists(folder) else sweep
        if before.swept != sweep.swept:
            raise InputError(
                f"run_dir: '{folder}' holds a sweep over {', '.join(before.swept)}, this one is over "
                f"{', '.join(sweep.swept)}; give another run_dir"
            )
        known = {tuple(job.settings.items()): job.number for job in before.jobs.values()}
        for each in planned:
            number = known.setdefault(tuple(each.settings.items()), len(known))
            place = str(Path(each.cfg.run_dir).absolute()) if own and each.cfg is not None else str(number)
            overrides = _placed(each, None if own else folder / str(number), folder)
            trained = [line for line in each.overrides if not line.startswith((*OF_HYDRA, "run_dir="))]
            job, noted = Job(number, each.settings, trained, place), before.jobs.get(number)
            if noted is not None and noted.overrides == trained:
                job = replace(job, state=noted.state, reason=noted.reason)
            sweep = sweep.with_job(job)
            laid_out[number] = Planned(each.settings, overrides, each.cfg, each.faults)
        kept = {number: job for number, job in before.jobs.items() if number not in laid_out}
        for job in kept.values():
            sweep = sweep.with_job(job)
        places = [str(sweep.place(folder, number).resolve()) for number in sweep.jobs]
        if len(set(places)) < len(places):
            raise InputError("run_dir: several jobs would train in the same one; leave it out, or name the sweep's own")
        if is_first():
            record.write(folder, sweep)
    return folder, laid_out


def _fresh(command: Command, planned: Sequence[Planned]) -> Path:
    """``<outputs>/<experiment>/multirun/<date-time>``, without the experiment where it is swept over."""
    cfgs = [each.cfg for each in planned if each.cfg is not None]
    names = {cfg.get("experiment") or command.program for cfg in cfgs}
    outputs = Path(OmegaConf.select(cfgs[0], "paths.outputs") or "outputs")
    return runs.fresh((outputs / names.pop() if len(names) == 1 else outputs) / "multirun")


def _placed(each: Planned, place: Path | None, folder: Path) -> list[str]:
    """The job's overrides with its run directory, where it has none of its own, and the sweep as its group in W&B."""
    lines = list(each.overrides)
    if each.cfg is not None and takes_group(each.cfg, lines):
        lines.append(group_override(folder))
    if place is None:
        return lines
    return [*(line for line in lines if not line.startswith("run_dir=")), *quote_overrides([f"run_dir={place}"])]


def _objective(command: Command, cfg: DictConfig) -> tuple[str | None, bool]:
    if command.program != "train" or cfg.get("callbacks") is None:
        return None, False
    from latentdiff.app.sweep.objective import default_objective

    return default_objective(cfg)


def _launch(
    job: Callable[[DictConfig], None], command: Command, folder: Path, jobs: Mapping[int, Planned]
) -> list[int]:
    """Exit code of each job; of one alone where a signal, or a launcher that lost a job's process, has ended all."""
    lines = [[line for line in each.overrides if not line.startswith(OF_HYDRA)] for each in jobs.values()]
    shared = [line for line in command.overrides if line.startswith(OF_HYDRA)]
    (placed,) = quote_overrides([f"run_dir={folder}"])
    shared += ["hydra/hydra_logging=none", f"hydra.sweep.dir={placed.partition('=')[2]}"]
    with opened(command.configs, job_name=command.program):
        hydra = GlobalHydra.instance().hydra
        cfg = hydra.compose_config(command.config_name, [*lines[0], *shared], RunMode.MULTIRUN)
        task = GridJob(
            job=job,
            script=str(Path(sys.argv[0]).resolve()),
            options=command.options,
            folder=folder.resolve(),
            numbers=list(jobs),
            names=[each.name for each in jobs.values()],
            ends_all=cfg.hydra.launcher._target_.endswith(IN_THIS_PROCESS),
        )
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(cfg))
        try:
            launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=cfg)
            return [result.return_value for result in launcher.launch(lines, initial_job_idx=0)]
        except BaseException as error:
            return [judge(error)]


def _exit_code(codes: list[int]) -> int:
    worst = max(codes, default=DONE)
    if worst > SIGNALLED or all(code == worst for code in codes):
        return worst
    return FAILED

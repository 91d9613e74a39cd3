"""``latentdiff sweep SPACE.yaml``: trials of a search, several at a time, each one train.py; resumable at any moment.

Optuna's journal in the sweep's folder is the state: which trials there are, with which values, and what they have
measured. A trial that runs there but is seen to by no process belongs to a search that was killed; it goes on from its
checkpoint. Trials are told apart from those of other processes on the same folder by a lock each.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from latentdiff.app.exit_codes import DONE, FAILED, SIGNALLED
from latentdiff.app.sweep import record as record
from latentdiff.app.sweep.group import group_override
from latentdiff.app.sweep.record import Job, Sweep
from latentdiff.app.sweep.report import named, print_report
from latentdiff.app.sweep.space import Space
from latentdiff.app.sweep.study import opened
from latentdiff.app.sweep.trial import TrialProcess, last_error, measured
from latentdiff.config.errors import InputError, RunError
from latentdiff.config.faults import did_you_mean

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

PASSED_ON = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM, signal.SIGHUP: signal.SIGTERM}
"""What a trial gets of the signals that stop a search: it does not save its state on SIGHUP."""
EVERY = 0.5
"""Seconds between looks at the trials."""
HOPELESS = 3
"""Trials that fail before any has measured anything, after which the search ends."""


@dataclass
class Active:
    """A trial that this process sees to. ``slot``: its place among those beside it. ``told``: how many of the search's
    signals it has had."""

    trial: Trial
    job: Job
    process: TrialProcess
    claim: IO[str]
    slot: int
    reported: int
    pruned: bool = False
    told: int = 0


class Search:
    """Args:
    program: the command that trains, without overrides.
    environments: per slot; their number is that of the trials beside each other.
    """

    def __init__(
        self,
        *,
        space: Space,
        study: Study,
        folder: Path,
        program: Sequence[str],
        environments: Sequence[dict[str, str]],
    ):
        self.space, self.study, self.folder = space, study, folder
        self.program, self.environments = list(program), list(environments)
        self.active: list[Active] = []
        self.signals: list[int] = []

    @property
    def stopped_by(self) -> int:
        """The signal that has ended the search, 0 where none has come."""
        return self.signals[0] if self.signals else 0

    def run(self) -> None:
        """Until the trials are done, or a signal has come and all have saved. Raises RunError where the first trials
        fail one as the other, InputError where they do not measure the objective; running ones are stopped before."""
        with self._signals_noted():
            try:
                while self._fill() or self.active:
                    for each in list(self.active):
                        self._look_at(each)
                    time.sleep(EVERY)
            finally:
                self._stop_all()

    @contextlib.contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """The handler only notes them: a trial may be just about to start. SIGHUP stays ignored under nohup."""
        hung_up = signal.getsignal(signal.SIGHUP)
        noted = [number for number in PASSED_ON if number != signal.SIGHUP or hung_up != signal.SIG_IGN]
        before = {number: signal.signal(number, lambda number, _: self.signals.append(number)) for number in noted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, each: Active) -> bool:
        """Sends the trial the signals that it has not had; False where it has not been started."""
        while each.told < len(self.signals):
            each.process.stop(PASSED_ON[self.signals[each.told]])
            each.told += 1
        return each.process.stop(0)

    def _stop_all(self) -> None:
        """Waits for the trials that run: each saves its state."""
        for each in self.active:
            each.process.stop(signal.SIGTERM)
        for each in self.active:
            while self._pass_on(each) and each.process.poll() is None:
                time.sleep(EVERY)
            record.put(self.folder, each.job.number, record.STOPPED)
            each.claim.close()

    def _fill(self) -> bool:
        """Starts trials in the free slots; whether one was."""
        begun = False
        while not self.stopped_by and (free := self._free_slot()) is not None and (found := self._next()) is not None:
            trial, claim = found
            job = self._recorded(trial)
            line = [*self.program, *job.overrides, *self.space.trial_overrides]
            line += [group_override(self.folder)] if self.space.grouped else []
            place, own = (self.folder / job.run_dir).resolve(), self.environments[free]
            process = TrialProcess(command=line, run_dir=place, environment=own)
            steps = self.study.trials[trial.number].intermediate_values
            self.active.append(Active(trial, job, process, claim, free, max(steps, default=-1)))
            begun = True
        return begun

    def _free_slot(self) -> int | None:
        taken = {each.slot for each in self.active}
        return next((slot for slot in range(len(self.environments)) if slot not in taken), None)

    def _next(self) -> tuple[Trial, IO[str]] | None:
        """One that nobody sees to, else a new one while there are to be more. Under a lock: what another process has
        asked for and not claimed yet would look like the former."""
        from optuna.trial import Trial, TrialState

        with record.locked(self.folder):
            trials = [trial for trial in self.study.trials if trial.state != TrialState.WAITING]
            for frozen in trials:
                if frozen.state == TrialState.RUNNING and (claim := record.claim(self.folder, frozen.number)):
                    if len(frozen.params) == len(self.space.parameters):
                        print(f"trial {frozen.number} goes on", flush=True)
                        return Trial(self.study, frozen._trial_id), claim
                    self._give_up(frozen, claim)
            begun = sum(len(trial.params) == len(self.space.parameters) for trial in trials)
            waiting = len(self.study.trials) - len(trials)
            if begun >= self.space.trials or (self.space.sampler == "grid" and not waiting):
                return None
            trial = self.study.ask({key: parameter.distribution() for key, parameter in self.space.parameters.items()})
            return trial, record.claim(self.folder, trial.number)

    def _give_up(self, frozen: FrozenTrial, claim: IO[str]) -> None:
        """On a trial whose process was killed while it drew the values; those of a grid wait again."""
        from optuna.trial import TrialState

        if values := frozen.system_attrs.get("fixed_params"):
            self.study.enqueue_trial(values)
        self.study.tell(frozen.number, state=TrialState.FAIL)
        claim.close()

    def _recorded(self, trial: Trial) -> Job:
        settings = self.space.settings(trial.params)
        overrides = [*self.space.overrides, *(f"{key}={value}" for key, value in settings.items())]
        job = Job(trial.number, settings, overrides, str(trial.number), record.RUNNING)
        record.update(self.folder, lambda sweep: sweep.with_job(job))
        return job

    def _look_at(self, each: Active) -> None:
        if self.stopped_by and not self._pass_on(each):
            return self._leave(each, record.STOPPED)
        code = each.process.poll()  # before what it has measured: nothing is missed
        curve, names = measured(each.process.run_dir, self.space.objective)
        self._check_measured(names)
        for images, value in curve:
            if images > each.reported:
                each.trial.report(value, images)
                each.reported = images
        if code is None:
            early = bool(curve) and each.reported < self.space.images
            if early and not each.pruned and not self.stopped_by and each.trial.should_prune():
                each.pruned = each.process.stop(signal.SIGTERM)
            return
        if code != DONE and self.stopped_by:
            return self._leave(each, record.STOPPED)
        value = curve[-1][1] if curve else None
        if code == DONE and value is not None:
            self._tell(each, record.DONE, value)
        elif each.pruned and curve:
            self._tell(each, record.PRUNED, value, f"behind others at {curve[-1][0]:,} images")
        else:
            missing = f"nothing was measured that is called {self.space.objective}"
            self._tell(each, record.FAILED, value, missing if code == DONE else last_error(each.process.run_dir, code))
        self._check_hope()

    def _check_measured(self, names: set[str]) -> None:
        """The first validation shows whether the objective is among what is measured."""
        name = self.space.objective
        if name.startswith("val/") and name not in names and any(each.startswith("val/") for each in names):
            found = sorted(each for each in names if each.startswith("val/"))
            raise InputError(
                f"objective: no '{name}' is measured{did_you_mean(name, found)}\n  available: {', '.join(found)}"
            )

    def _tell(self, each: Active, state: str, value: float | None, reason: str = "") -> None:
        """The record first: a trial that the journal has as ended is not looked at again."""
        from optuna.trial import TrialState

        record.put(self.folder, each.job.number, state, reason)
        states = {record.DONE: TrialState.COMPLETE, record.PRUNED: TrialState.PRUNED, record.FAILED: TrialState.FAIL}
        self.study.tell(each.trial.number, value if state == record.DONE else None, state=states[state])
        self._release(each)
        said = "" if value is None else f": {self.space.objective} {value:.4g} at {each.reported:,} images"
        print(f"trial {each.job.number} {state}{said}, {named(each.job)}{self._best()}", flush=True)
        if state == record.FAILED:
            print(f"  {reason}", flush=True)

    def _leave(self, each: Active, state: str) -> None:
        """For the next search to go on with."""
        record.put(self.folder, each.job.number, state)
        self._release(each)

    def _release(self, each: Active) -> None:
        self.active.remove(each)
        each.claim.close()

    def _best(self) -> str:
        from optuna.trial import TrialState

        done = [trial for trial in self.study.trials if trial.state == TrialState.COMPLETE]
        if not done:
            return ""
        best = (max if self.space.maximize else min)(done, key=lambda trial: trial.value)
        return f"; best: trial {best.number}, {best.value:.4g}"

    def _check_hope(self) -> None:
        from optuna.trial import TrialState

        trials = self.study.trials
        failed = [trial for trial in trials if trial.state == TrialState.FAIL]
        if len(failed) >= HOPELESS and not any(trial.intermediate_values for trial in trials):
            raise RunError(
                f"the first {len(failed)} trials have failed, see above and {record.NAME}; nothing else is tried"
            )


def search(
    space: Space, folder: Path, *, program: Sequence[str], environments: Sequence[dict[str, str]], command: str
) -> int:
    """Runs or goes on with the search in ``folder``, and reports. The exit code: 0, 1 where no trial is done, that of
    the signal that has stopped it."""
    with opened(folder, space) as study:
        own = Sweep(command, list(space.parameters), space.objective, space.maximize)
        with record.locked(folder):
            record.write(folder, replace(record.read(folder), command=command) if record.exists(folder) else own)
        print(f"search of {_extent(space)}: {folder}", flush=True)
        running = Search(space=space, study=study, folder=folder, program=program, environments=environments)
        running.run()
    report = print_report(folder)
    if running.stopped_by:
        print(f"stopped by {signal.Signals(running.stopped_by).name}; the same command goes on")
        return SIGNALLED + running.stopped_by
    return FAILED if report.best is None else DONE


def _extent(space: Space) -> str:
    whole = len(space.all_values()) if space.sampler == "grid" else 0
    return f"{space.trials} of {whole} combinations" if space.trials < whole else f"{space.trials} trials"

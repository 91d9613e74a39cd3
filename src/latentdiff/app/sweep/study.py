"""Optuna's side of a search: the journal in the sweep's folder, the sampler and the pruner."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from latentdiff.app.run import run_dir as runs
from latentdiff.app.run import run_lock
from latentdiff.app.sweep.space import Pruner, Space
from latentdiff.config.errors import InputError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

JOURNAL, DRIVERS = "journal.log", ".drivers.lock"
SPACE = "space"


@contextlib.contextmanager
def opened(folder: Path, space: Space) -> Iterator[Study]:
    """The search in ``folder``, begun or gone on with; other processes may work on it at the same time.

    Raises InputError where another search is in the folder, with what differs, and without optuna.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ModuleNotFoundError as error:
        raise InputError("latentdiff sweep needs optuna: pip install 'latentdiff[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    runs.made(folder, "--dir")
    with (folder / DRIVERS).open("a") as drivers:
        _repair(folder, drivers.fileno())
        study = optuna.create_study(
            study_name=SPACE,
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
            sampler=_sampler(space),
            pruner=_pruner(space.pruner, space.images),
            direction="maximize" if space.maximize else "minimize",
            load_if_exists=True,
        )
        _begin(study, folder, space)
        fcntl.flock(drivers, fcntl.LOCK_SH)
        yield study


def _repair(folder: Path, drivers: int) -> None:
    """Waits until no other process begins a search here; where none works on it, clears what a killed one has left: a
    lock, and half a line at the end, after which the journal could not be read."""
    try:
        fcntl.flock(drivers, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in run_lock.TAKEN:
            raise
        fcntl.flock(drivers, fcntl.LOCK_SH)
        return
    journal = folder / JOURNAL
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if journal.exists():
        content = journal.read_bytes()
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _begin(study: Study, folder: Path, space: Space) -> None:
    before = study.user_attrs.get(SPACE)
    if before is None:
        study.set_user_attr(SPACE, space.identity())
        for values in space.all_values() if space.sampler == "grid" else ():
            study.enqueue_trial(values)
    elif changed := [name for name, value in space.identity().items() if before.get(name) != value]:
        name = changed[0]
        raise InputError(
            f"'{folder}' holds another search: its {name} is {before.get(name)}, now it is {space.identity()[name]}; "
            "give the sweep another folder with --dir"
        )


def _pruner(wanted: Pruner | None, images: int) -> BasePruner:
    from optuna import pruners

    if wanted is None:
        return pruners.NopPruner()
    least, number = wanted.min_images, wanted.number
    if wanted.name == "hyperband":
        return pruners.HyperbandPruner(min_resource=least, max_resource=images, reduction_factor=number)
    if wanted.name == "successive_halving":
        return pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=number)
    return pruners.MedianPruner(n_startup_trials=number, n_warmup_steps=least)


def _sampler(space: Space) -> BaseSampler:
    """Its draws for a trial depend on the seed, the trial's number and the trials before it, so that a search that goes
    on, and several processes that share one, do not draw the same again."""
    from optuna import samplers

    class Numbered(samplers.BaseSampler):
        def __init__(self) -> None:
            self.own: BaseSampler = samplers.RandomSampler()

        def before_trial(self, study, trial) -> None:
            seed = (space.seed * 1_000_003 + trial.number) % 2**32
            make = samplers.TPESampler if space.sampler == "tpe" else samplers.RandomSampler
            self.own = make(seed=seed)

        def infer_relative_search_space(self, study, trial):
            return self.own.infer_relative_search_space(study, trial)

        def sample_relative(self, study, trial, search_space):
            return self.own.sample_relative(study, trial, search_space)

        def sample_independent(self, study, trial, param_name, param_distribution):
            return self.own.sample_independent(study, trial, param_name, param_distribution)

    return Numbered()

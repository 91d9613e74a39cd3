"""evaluate.py: the numbers of a checkpoint, with the card that says how they were obtained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from latentdiff.app.evaluation.grid import WHOLE, run_sweep
from latentdiff.app.evaluation.kept import kept
from latentdiff.app.evaluation.parts import Parts, load_parts
from latentdiff.app.evaluation.publish import publish
from latentdiff.app.evaluation.repeat import repeated, verdict
from latentdiff.app.evaluation.repeats import check_kept, check_repeats, measure_repeats
from latentdiff.app.evaluation.tracking import check_logger, to_wandb
from latentdiff.app.evaluation.work_files import GRID, REPORT, no_work_if_refused
from latentdiff.app.processes import is_first, say
from latentdiff.app.ranks import Ranks, launched
from latentdiff.app.run import record as run_record
from latentdiff.app.run import run_dir as runs
from latentdiff.app.run.run_lock import alone_in
from latentdiff.app.schema import EVALUATED
from latentdiff.config.errors import InputError
from latentdiff.evaluation.compare import RESULTS

CHOICES = {"conditions": ("data", "made"), "weights": ("ema", "model"), "save_samples": (None, "png", "npz")}
SIGN = ".fault"
"""In the run directory while one of several processes has failed and the others do not know yet."""


def run(cfg: DictConfig) -> None:
    """Generate (stage two) or reconstruct (stage one) ``num_images`` samples, or take those of others; measure them.

    On any number of processes, with the same result. A run directory in which an evaluation was killed goes on.
    """
    _check_subject(cfg)
    if cfg.card is not None:
        cfg = repeated(cfg)
    _check_values(cfg)
    check_logger(cfg)
    own = cfg.run_dir is None
    where = runs.prepare(cfg.run_dir, outputs=cfg.paths.outputs, name="evaluate")
    cfg.run_dir = str(where)
    with _kept_if_used(where, own=own), alone_in(where):
        ranks = launched(cfg.trainer)
        say(f"run directory: {where}")
        with ranks.together(where / SIGN):
            _run(cfg, ranks, where, Console(quiet=not ranks.first))


@contextmanager
def _kept_if_used(where: Path, *, own: bool) -> Iterator[None]:
    """Removes a run directory of the command's ``own`` choice that is still empty when the block refuses its input."""
    try:
        yield
    except InputError:
        if own and is_first():
            with suppress(OSError):  # not empty
                where.rmdir()
        raise


def _run(cfg: DictConfig, ranks: Ranks, where: Path, console: Console) -> None:
    sweeping = any(values is not None for values in cfg.sweep.values())
    if ranks.first and (where / (RESULTS if sweeping else WHOLE)).exists():
        raise InputError(f"run_dir: '{where}' holds {'an evaluation' if sweeping else 'a sweep'}; give another")
    if ranks.first:
        run_record.check_own(where, "evaluate")
    if sweeping:
        run_sweep(cfg, ranks, where, console)
        _record(cfg, ranks, where)
        return
    parts = load_parts(cfg, ranks, where)
    check_repeats(cfg, parts.subject)
    with no_work_if_refused(where, ranks):
        _make_room(cfg, parts, ranks, where)
    _record(cfg, ranks, where)
    found = measure_repeats(cfg, parts, ranks, where, console)
    if ranks.first:
        publish(cfg, parts, found, where, ranks, console)
        to_wandb(cfg, found.as_file(), where)
    if ranks.first and cfg.card is not None:
        console.print(verdict(cfg.card, where / RESULTS), soft_wrap=True, markup=False)


def _record(cfg: DictConfig, ranks: Ranks, where: Path) -> None:
    if ranks.first:
        run_record.keep(where, cfg, program="evaluate", world_size=ranks.count, device=ranks.device.type)


def _make_room(cfg: DictConfig, parts: Parts, ranks: Ranks, where: Path) -> None:
    """Removes what an evaluation of the same protocol has published: results never stand beside another's pictures.

    Raises InputError for one of another protocol, and for such repetitions.
    """
    found = kept(where, cfg, parts, ranks)
    check_kept(cfg, parts, ranks, where)
    if found is not None and ranks.first:
        say(f"'{where}' holds this evaluation already; it is measured again")
        for name in (RESULTS, GRID, REPORT):
            (where / name).unlink(missing_ok=True)


def _check_subject(cfg: DictConfig) -> None:
    given = [name for name in EVALUATED if cfg[name] is not None]
    if len([name for name in given if name != "card"]) > 1:
        raise InputError(f"{' and '.join(given)}: an evaluation is of one of them; give one")


def _check_values(cfg: DictConfig) -> None:
    for name, known in CHOICES.items():
        if cfg[name] not in known:
            listed = ", ".join("null" if each is None else each for each in known)
            raise InputError(f"{name}: expected one of {listed}, got '{cfg[name]}'")
    if cfg.weights != "ema" and cfg.checkpoint is None:
        raise InputError("weights: it is for checkpoints; leave it out")
    if cfg.conditions != "data" and cfg.checkpoint is None:
        raise InputError("conditions: they are made for checkpoints; leave it out")
    for name in ("num_images", "batch_size", "repeats"):
        if cfg[name] < 1:
            raise InputError(f"{name}: expected at least 1, got {cfg[name]}")
    if cfg.num_reference is not None and cfg.num_reference < 2:
        raise InputError(f"num_reference: expected at least 2 real images, got {cfg.num_reference}")
    if cfg.num_reference is not None and cfg.reference is not None:
        raise InputError("num_reference: the reference is a file, which has its own images; leave one of them out")
    if cfg.lossy and cfg.images is None:
        raise InputError("lossy: it is for images=PATH, images made elsewhere; leave it out")
    if not 0 <= cfg.max_duplicates <= 1:
        raise InputError(f"max_duplicates: expected a share from 0 to 1, got {cfg.max_duplicates}")
    for name in ("neighbours", "neighbour_images"):
        if cfg[name] < 0:
            raise InputError(f"{name}: expected 0 or more, got {cfg[name]}")

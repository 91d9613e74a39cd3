"""One evaluation over several disjoint ranges of seeds: means, and how far a number moves by chance."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from latentdiff.app.evaluation.kept import kept
from latentdiff.app.evaluation.one_evaluation import Evaluation, measure
from latentdiff.app.evaluation.parts import Parts
from latentdiff.app.evaluation.subject import Subject
from latentdiff.app.evaluation.work_files import clear
from latentdiff.app.ranks import Ranks
from latentdiff.config.errors import InputError
from latentdiff.evaluation.compare import RESULTS
from latentdiff.evaluation.given_images import GivenImages
from latentdiff.evaluation.report import write_results

FOLDER = "repeats"


def check_repeats(cfg: DictConfig, subject: Subject) -> None:
    """Raises InputError where no number depends on a seed."""
    if cfg.repeats > 1 and (subject.stage_one is not None or isinstance(subject.generate, GivenImages)):
        raise InputError("repeats: nothing here depends on a seed, every repetition would be the same; leave it out")


def measure_repeats(cfg: DictConfig, parts: Parts, ranks: Ranks, where: Path, console: Console) -> Evaluation:
    """As ``measure``, ``cfg.repeats`` times, with the seeds ``cfg.seed`` and the following. Collective.

    No two images have the same seed (``card.SEED_RULE``). Results are means. Images, controls and card are those of the
    first seed; the others' results are in ``where/repeats``, and those that are complete are not made again: see
    ``check_kept`` before.
    """
    first = measure(cfg, *parts, ranks, where, console)
    if cfg.repeats == 1:
        return first
    each = [json.loads(json.dumps(first.as_file()))]
    for place, own in _others(cfg, where).items():
        if kept(place, own, parts, ranks) is None:
            found = measure(own, *parts, ranks, place, console)
            if ranks.first:
                write_results(place / RESULTS, found.as_file())
                clear(place)
        each.append(kept(place, own, parts, ranks))
    results = [found["results"] for found in each]
    seeds = range(cfg.seed, cfg.seed + cfg.repeats)
    return replace(first, results=over(results, _mean), repeats=_told(seeds, each))


def check_kept(cfg: DictConfig, parts: Parts, ranks: Ranks, where: Path) -> None:
    """Raises InputError where a seed's evaluation that is complete is another than the one asked for. Collective."""
    for place, own in _others(cfg, where).items():
        kept(place, own, parts, ranks)


def _others(cfg: DictConfig, where: Path) -> dict[Path, DictConfig]:
    """Folder and configuration of every seed but the first."""
    seeds = range(cfg.seed + 1, cfg.seed + cfg.repeats)
    alone = {"repeats": 1, "controls": False, "card": None}
    return {where / FOLDER / f"seed-{seed}": OmegaConf.merge(cfg, {"seed": seed, **alone}) for seed in seeds}


def over(results: Sequence[Mapping], combine: Callable[[Sequence[float]], float]) -> dict:
    """Nested results with each number combined over all of them; what is no number, or not in all, is left out."""
    combined = {name: _over([each.get(name) for each in results], combine) for name in results[0]}
    return {name: value for name, value in combined.items() if value not in (None, {}, [])}


def _over(values: Sequence[object], combine: Callable[[Sequence[float]], float]) -> object:
    if all(isinstance(value, Mapping) for value in values):
        return over(values, combine)
    if all(isinstance(value, list) for value in values):
        if len({len(value) for value in values}) != 1:
            return None
        entries = [_over(entry, combine) for entry in zip(*values)]
        return None if None in entries else entries
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return combine(values)
    return None


def _mean(values: Sequence[float]) -> float:
    """A whole number that is the same in all stays one."""
    return values[0] if len(set(values)) == 1 else fmean(values)


def _told(seeds: Sequence[int], each: Sequence[Mapping]) -> dict[str, object]:
    """``sd``: standard deviation of one evaluation (N - 1), not of their mean."""
    results = [found["results"] for found in each]
    return {
        "count": len(seeds),
        "seeds": list(seeds),
        "sd": over(results, stdev),
        "min": over(results, min),
        "each": [
            {"seed": seed, "results": found["results"], "observed": found["card"]["observed"]}
            for seed, found in zip(seeds, each)
        ],
    }

"""A grid of evaluations of one checkpoint: guidance scales, steps, samplers and lengths of its averages."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from latentdiff.app.evaluation.kept import kept
from latentdiff.app.evaluation.parts import Parts, load_parts
from latentdiff.app.evaluation.publish import publish
from latentdiff.app.evaluation.repeat import config_record
from latentdiff.app.evaluation.repeats import check_kept, measure_repeats
from latentdiff.app.evaluation.subject import load_subject
from latentdiff.app.evaluation.tracking import to_wandb
from latentdiff.app.evaluation.work_files import REPORT, clear, no_work_if_refused, tidy
from latentdiff.app.generate import overlaid
from latentdiff.app.post_hoc_ema import reconstruct
from latentdiff.app.ranks import Ranks
from latentdiff.app.run.preflight import check_sampling
from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError
from latentdiff.config.faults import did_you_mean
from latentdiff.config.instantiate import load_config
from latentdiff.evaluation.compare import read_results
from latentdiff.evaluation.curve import Point, best, draw_curves, names_of, numbers_of, points_tables, write_csv
from latentdiff.evaluation.page import write_page
from latentdiff.evaluation.report import write_results

EMA_LENGTH, SAMPLER, STEPS, GUIDANCE = "ema_length", "sampler", "steps", "guidance"
ORDER = (EMA_LENGTH, SAMPLER, STEPS, GUIDANCE)
"""The last changes first."""
POINTS, CURVES, EMA = "points", "curves", "ema"
TABLE, WHOLE = "sweep.csv", "sweep.json"

Settings = Mapping[str, object]


def run_sweep(cfg: DictConfig, ranks: Ranks, where: Path, console: Console) -> None:
    """Evaluates every combination of ``cfg.sweep``'s values in ``where/points/NAME``, and writes tables and curves.

    Data, references and the metrics' networks are loaded once, and real images are measured once. A point that is
    complete is not done again. Collective. Raises InputError, before any image is made, for values that cannot be used.
    """
    if ranks.first:
        tidy(where)
    settings = list(_combinations(cfg))
    _check(cfg, settings)
    averages = _averages(cfg, settings, ranks, where)
    planned = {_name(each): (each, _configured(cfg, each, averages)) for each in settings}
    begun = ranks.broadcast([name for name in planned if (where / POINTS / name).exists()])
    loaded = (begun or list(planned))[0]
    for name, (_, own) in planned.items():
        own.controls = own.controls and name == loaded  # they depend on none of the settings
    parts = load_parts(planned[loaded][1], ranks, where)
    with no_work_if_refused(where, ranks):
        standing = _standing({where / POINTS / name: own for name, (_, own) in planned.items()}, parts, ranks)
    points = []
    for number, (name, (each, own)) in enumerate(planned.items(), start=1):
        console.print(f"{number} of {len(planned)}: {name}", soft_wrap=True, markup=False)
        place = where / POINTS / name
        if place not in standing:
            if name != loaded:
                parts, loaded = parts._replace(subject=load_subject(own, ranks)), name
            standing[place] = _evaluated(own, parts, ranks, place, console)
        points.append(_point(name, each, standing[place]))
    if ranks.first:
        _publish(cfg, points, where, console)
        clear(where)


def _combinations(cfg: DictConfig) -> Iterator[Settings]:
    """The product of the lists that are given."""
    given = {name: list(cfg.sweep[name]) for name in ORDER if cfg.sweep[name] is not None}
    for name, values in given.items():
        if odd := [value for value in values if isinstance(value, float) and not math.isfinite(value)]:
            raise InputError(f"sweep.{name}: expected finite numbers, got {odd[0]}")
        if not values:
            raise InputError(f"sweep.{name}: the list is empty; give values, or leave it out")
        if twice := [value for value in values if values.count(value) > 1]:
            raise InputError(f"sweep.{name}: {twice[0]} is given twice; once is enough")
    return (dict(zip(given, values)) for values in itertools.product(*given.values()))


def _check(cfg: DictConfig, settings: Sequence[Settings]) -> None:
    """Raises InputError for what a point would find out: as train.py does before a training."""
    if cfg.checkpoint is None:
        raise InputError("sweep: a grid is of one checkpoint; give checkpoint=PATH alone")
    path = store.resolve(cfg.checkpoint, prefer=("last", "best"))
    if (kind := store.read_manifest(path).kind) != "diffusion":
        raise InputError(f"sweep: '{path}' is of the kind {kind}, whose images depend on none of these; leave it out")
    if EMA_LENGTH in settings[0] and cfg.weights != "ema":
        raise InputError("sweep.ema_length: weights=model evaluates no average; leave one of them out")
    config = load_config(path / store.CONFIG)
    for each in settings:
        own = _configured(cfg, each, {})
        sampler = overlaid(own.sampler, config.sampler, "solver")
        guidance = overlaid(own.guidance, config.guidance, "_target_")
        if "checkpoint" in guidance.keys():  # noqa: SIM118  a second one, which is looked at when it is loaded
            guidance = config.guidance
        tried = OmegaConf.merge(config, {"sampler": None, "guidance": None}, {"sampler": sampler, "guidance": guidance})
        try:
            check_sampling(tried)
        except InputError as error:
            raise InputError(f"sweep: {_name(each)}: {error}") from error


def _averages(cfg: DictConfig, settings: Sequence[Settings], ranks: Ranks, where: Path) -> dict[float, Path]:
    """A checkpoint per length in ``where/ema``, made of the run's snapshots where it is not there yet. Collective.

    Raises InputError where there are no snapshots, or too few for a length.
    """
    path = store.resolve(cfg.checkpoint, prefer=("last", "best"))
    of = store.read_manifest(path).digest[:12]
    lengths = dict.fromkeys(each[EMA_LENGTH] for each in settings if EMA_LENGTH in each)
    places = {length: where / EMA / f"{of}-{length:g}" for length in lengths}
    if ranks.first:
        for length, place in places.items():
            if not place.exists():
                reconstruct(path, place, length=length)
    ranks.barrier()
    return places


def _configured(cfg: DictConfig, settings: Settings, averages: Mapping[float, Path]) -> DictConfig:
    """The configuration of one point, which is that of a single evaluation."""
    own = OmegaConf.merge(cfg, {"sweep": dict.fromkeys(cfg.sweep), "logger": None})
    if SAMPLER in settings:
        steps = cfg.sampler.get("steps") if "solver" not in cfg.sampler else None
        own.sampler = _sampler(settings[SAMPLER])
        own.sampler.steps = own.sampler.steps if steps is None else steps
    if STEPS in settings:
        own.sampler.steps = settings[STEPS]
    if GUIDANCE in settings:
        if "_target_" in own.guidance and "scale" not in own.guidance:
            raise InputError(f"sweep.guidance: {own.guidance._target_.rpartition('.')[2]} has no scale; choose another")
        own.guidance.scale = settings[GUIDANCE]
    if settings.get(EMA_LENGTH) in averages:
        own.checkpoint = str(averages[settings[EMA_LENGTH]])
    return own


def _sampler(name: str) -> DictConfig:
    """The node of ``sampler=name``, composed by the Hydra that runs the program."""
    known = GlobalHydra.instance().config_loader().get_group_options("sampler", ObjectType.CONFIG)
    if name not in known:
        raise InputError(
            f"sweep.sampler: there is no 'sampler/{name}'{did_you_mean(name, known)}\n  available: {', '.join(known)}"
        )
    node = compose("evaluate", [f"sampler={name}"]).sampler
    return OmegaConf.create(OmegaConf.to_container(node, resolve=True))


def _standing(planned: Mapping[Path, DictConfig], parts: Parts, ranks: Ranks) -> dict[Path, dict]:
    """What the results.json of the points that are complete hold, by their folder. Collective.

    Raises InputError where one, or a repetition of one, is another evaluation than the one asked for.
    """
    standing = {}
    for place in ranks.broadcast([place for place in planned if place.exists()]):
        own = planned[place]
        point = parts._replace(subject=load_subject(own, ranks))
        found = kept(place, own, point, ranks)
        if found is not None and found.get("repeats", {}).get("count", 1) == own.repeats:
            standing[place] = found
        else:
            check_kept(own, point, ranks, place)
    return standing


def _evaluated(cfg: DictConfig, parts: Parts, ranks: Ranks, place: Path, console: Console) -> dict:
    """What the point's results.json holds."""
    evaluation = measure_repeats(cfg, parts, ranks, place, console)
    if ranks.first:
        publish(cfg, parts, evaluation, place, ranks, Console(quiet=True))
    return ranks.broadcast(read_results(place) if ranks.first else None)


def _name(settings: Settings) -> str:
    return "_".join(
        f"{key}-{value:.10g}" if isinstance(value, float) else f"{key}-{value}" for key, value in settings.items()
    )


def _point(name: str, settings: Settings, found: Mapping[str, Mapping]) -> Point:
    return Point(name, settings, numbers_of(found["results"]), numbers_of(found.get("repeats", {}).get("sd", {})))


def _publish(cfg: DictConfig, points: Sequence[Point], where: Path, console: Console) -> None:
    write_csv(points, where / TABLE)
    write_results(where / WHOLE, {"points": [asdict(point) for point in points]})
    curves = draw_curves(points, where / CURVES)
    title = f"{cfg.checkpoint}: {len(points)} evaluations of {cfg.num_images} images"
    numbers = {n: {point.name: point.numbers[n] for point in points if n in point.numbers} for n in names_of(points)}
    rows = {point.name: {n: point.numbers[n] for n in best(points) if n in point.numbers} for point in points}
    command = shlex.join(["python", "evaluate.py", *config_record(cfg)["overrides"]])
    write_page(where / REPORT, title=title, found={}, points=rows, command=command, curves=curves)
    for table in points_tables(points, title=title):
        console.print(table)
    said = f"table: {where / TABLE}   curves: {where / CURVES}   report: {where / REPORT}"
    console.print(said, soft_wrap=True, markup=False)
    to_wandb(cfg, {"results": numbers}, where)

"""Evaluations of one model under several settings: a table with the best of each number, and curves."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from latentdiff.durable import new_file
from latentdiff.evaluation.report import flattened, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = Mapping[str, float]
"""Dotted name -> value."""

GUIDANCE = "guidance"
"""The setting that curves are drawn over."""


def _named(*names: str) -> re.Pattern[str]:
    """A dotted name of which a part is one of these, alone or with a suffix as in ``rfid_n5000``; neither a standard
    deviation nor a control."""
    control = r"(?!.*(_sd(_|$)|\.(shuffled|reconstructions)\.))"
    return re.compile(rf"^{control}(.*\.)?r?({'|'.join(names)})([-_].*)?$")


FRECHET, CLIP = _named("fid", "sfid", "fd"), _named("clip_score")
LOWER = _named("fid", "sfid", "fd", "kid", "cmmd", "lpips", "bits_per_dim")
HIGHER = _named(
    "is", "precision", "recall", "density", "coverage", "clip_score", "psnr", "ssim", "miou", "accuracy", "shape"
)
SHOWN = 3
"""Numbers beside each other in a terminal."""
STYLE = {"svg.hashsalt": "latentdiff", "svg.fonttype": "none", "figure.figsize": (6.4, 4.4), "figure.dpi": 120}
"""With the salt and without a date the same numbers give the same bytes."""


@dataclass(frozen=True)
class Point:
    """``settings``: what was swept over, by name, the same names in all points. ``sd``: of some of the numbers."""

    name: str
    settings: Mapping[str, object]
    numbers: Numbers
    sd: Numbers


def numbers_of(results: Mapping[str, object]) -> dict[str, float]:
    """The scalar numbers of nested results by dotted names."""
    return {name: value for name, value in flattened(results) if _is_number(value)}


def is_frechet(name: str) -> bool:
    return FRECHET.match(name) is not None


def is_clip_score(name: str) -> bool:
    return CLIP.match(name) is not None


def best(points: Sequence[Point]) -> dict[str, int]:
    """Name of a number -> the position of the point where it is best; numbers that are neither better higher nor
    lower, as far as is known, are left out. Of equal ones the first."""
    found = {}
    for name in names_of(points):
        choose = min if LOWER.match(name) else max if HIGHER.match(name) else None
        having = [i for i, point in enumerate(points) if name in point.numbers]
        if choose is not None:
            found[name] = choose(having, key=lambda i: points[i].numbers[name])
    return found


def names_of(points: Iterable[Point]) -> list[str]:
    """Of all numbers, in the order in which they first occur."""
    return list(dict.fromkeys(chain.from_iterable(point.numbers for point in points)))


def write_csv(points: Sequence[Point], path: Path) -> None:
    """One row per point: its name, its settings, its numbers, and ``NAME_sd`` where there are deviations."""
    settings, numbers = list(points[0].settings), names_of(points)
    deviations = list(dict.fromkeys(chain.from_iterable(point.sd for point in points)))
    with new_file(path) as staged, staged.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", *settings, *numbers, *(f"{name}_sd" for name in deviations)])
        for point in points:
            own = [*point.settings.values(), *map(point.numbers.get, numbers), *map(point.sd.get, deviations)]
            writer.writerow([point.name, *("" if value is None else value for value in own)])


def points_tables(points: Sequence[Point], *, title: str) -> list[Table]:
    """A row per point, ``SHOWN`` numbers a table, the best of each with a star; numbers of which ``best`` knows nothing
    are left to the file."""
    stars, tables = best(points), []
    for start in range(0, len(stars), SHOWN):
        names = list(stars)[start : start + SHOWN]
        table = Table(*points[0].settings, title=title)
        for name in names:
            table.add_column(name, justify="right", overflow="fold")
        for i, point in enumerate(points):
            cells = (_cell(point, name, stars[name] == i) for name in names)
            table.add_row(*map(str, point.settings.values()), *cells)
        tables.append(table)
    return tables


def draw_curves(points: Sequence[Point], folder: Path) -> list[Path]:
    """SVG and PNG of each Fréchet distance over the guidance scale and over each CLIP score, a line per combination of
    the other settings; the SVG files. None where guidance was not swept over."""
    import matplotlib

    if GUIDANCE not in points[0].settings:
        return []
    drawn, names = [], names_of(points)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a user's own file says
        matplotlib.rcParams.update(STYLE)
        for frechet in filter(is_frechet, names):
            over = _figure(points, frechet, "guidance scale", lambda point: float(point.settings[GUIDANCE]))
            drawn.append(_save(over, folder / f"{_plain(frechet)}_over_guidance"))
            for score in filter(is_clip_score, names):
                against = _figure(points, frechet, score, lambda point, at=score: point.numbers.get(at), marked=True)
                drawn.append(_save(against, folder / f"{_plain(frechet)}_over_{_plain(score)}"))
    return drawn


def _figure(
    points: Sequence[Point],
    number: str,
    title: str,
    abscissa: Callable[[Point], float | None],
    *,
    marked: bool = False,
) -> Figure:
    """``number`` over the abscissa, points of a line joined by rising guidance; ``marked``: with their scales."""
    from matplotlib.figure import Figure

    figure, lines = Figure(layout="constrained"), _lines(points)
    axes = figure.add_subplot(xlabel=title, ylabel=number)
    for label, line in lines.items():
        shown = [point for point in line if number in point.numbers and abscissa(point) is not None]
        x, y = [abscissa(point) for point in shown], [point.numbers[number] for point in shown]
        spread = [point.sd.get(number, 0.0) for point in shown]
        axes.errorbar(x, y, yerr=spread if any(spread) else None, marker="o", capsize=3, label=label)
        for point, *place in zip(shown, x, y) if marked else ():
            scale = f"{point.settings[GUIDANCE]:g}"
            axes.annotate(scale, place, xytext=(4, 4), textcoords="offset points", fontsize="small")
    axes.grid(alpha=0.3)
    if any(lines):
        axes.legend(fontsize="small")
    return figure


def _lines(points: Sequence[Point]) -> dict[str, list[Point]]:
    """What the points of a line have in common, in words -> those points by rising guidance scale."""
    lines: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.settings[GUIDANCE]):
        others = {name: value for name, value in point.settings.items() if name != GUIDANCE}
        lines.setdefault(", ".join(f"{name} {value}" for name, value in others.items()), []).append(point)
    return {name: lines[name] for name in sorted(lines)}


def _save(figure: Figure, place: Path) -> Path:
    """As ``place.svg`` and ``place.png``."""
    place.parent.mkdir(parents=True, exist_ok=True)
    for kind, metadata in {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}.items():
        with new_file(place.parent / f"{place.name}.{kind}") as staged:
            figure.savefig(staged, format=kind, metadata=metadata)
    return place.parent / f"{place.name}.svg"


def _cell(point: Point, name: str, is_best: bool) -> str:
    if name not in point.numbers:
        return ""
    value, star = point.numbers[name], " *" if is_best else ""
    spread = f" ± {shown(point.sd[name])}" if name in point.sd else ""
    return shown(value) + spread + star


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain(name: str) -> str:
    """Of letters, digits, dots, dashes and underscores alone."""
    return re.sub(r"[^\w.-]+", "-", name)

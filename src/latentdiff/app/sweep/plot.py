"""The plot of a sweep: the objective over the images seen, and at the end over each key."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentdiff.app.sweep import record as record
from latentdiff.durable import new_file
from latentdiff.evaluation.curve import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from latentdiff.app.sweep.report import Report, Result

BESIDE = 3
"""Keys in a row."""
IN_LEGEND = 10
WIDE = 20.0
"""Values whose largest is that many times the smallest are drawn on a logarithmic axis."""
STYLES = {record.DONE: "-", record.PRUNED: ":"}


def draw(report: Report, path: Path) -> Path:
    """A PNG; the same numbers give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    keys = report.sweep.swept
    rows = math.ceil(len(keys) / BESIDE)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a user's own file says
        matplotlib.rcParams.update(STYLE)
        figure = Figure(layout="constrained", figsize=(9.6, 4.0 + 2.8 * rows))
        heights = [4.0, 2.8 * rows] if keys else [4.0]
        above, *below = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        _curves(above.add_subplot(), report)
        for i, key in enumerate(keys):
            _over_key(below[0].add_subplot(rows, min(len(keys), BESIDE), 1 + i), report, key)
        with new_file(path) as staged:
            figure.savefig(staged, format="png", metadata={"Software": None})
    return path


def _curves(axes: Axes, report: Report) -> None:
    """A line per job; the best is thick, pruned ones are dotted, others that are not done dashed."""
    shown = [result for result in report.results if result.curve]
    for i, result in enumerate(shown):
        images, values = zip(*result.curve)
        best = result is report.best
        axes.plot(
            images,
            values,
            STYLES.get(result.job.state, "--"),
            color=f"C{i % 10}",
            linewidth=3 if best else 1.2,
            marker="." if len(images) < 20 else None,
            alpha=1.0 if best or len(shown) <= IN_LEGEND else 0.5,
            label=_label(report, result) if best or len(shown) <= IN_LEGEND else None,
        )
    axes.set(xlabel="images seen", ylabel=report.sweep.objective)
    if _is_wide([value for result in shown for _, value in result.curve]):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))


def _label(report: Report, result: Result) -> str:
    from latentdiff.app.sweep.report import short_names, short_value

    names = short_names(report.sweep.swept)
    star = " (best)" if result is report.best else ""
    return (
        f"{result.job.number}: "
        + ", ".join(f"{names[k]} {short_value(v)}" for k, v in result.job.settings.items())
        + star
    )


def _over_key(axes: Axes, report: Report, key: str) -> None:
    """Jobs that are done as full points, others as crosses."""
    shown = [result for result in report.results if result.value is not None]
    numbers = [_number(result.job.settings[key]) for result in shown]
    numeric = all(number is not None for number in numbers)
    places: Sequence = numbers if numeric else [result.job.settings[key] for result in shown]
    for i, (result, place) in enumerate(zip(shown, places)):
        axes.plot([place], [result.value], "o" if result.job.state == record.DONE else "x", color=f"C{i % 10}")
    if numeric and _is_wide(numbers):
        axes.set_xscale("log")
    if not numeric:
        axes.tick_params(axis="x", labelrotation=15, labelsize="x-small")
    if _is_wide([result.value for result in shown]):
        axes.set_yscale("log")
    axes.set(xlabel=key, ylabel=report.sweep.objective)
    axes.grid(alpha=0.3)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_wide(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) > WIDE

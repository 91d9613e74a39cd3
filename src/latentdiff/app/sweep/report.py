"""The report of a sweep, finished or not: a table on the terminal, report.csv, report.png and report.html."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latentdiff.app.sweep import record as record
from latentdiff.app.sweep.curve import Curve, curve_of, lines_of
from latentdiff.app.sweep.record import Job, Sweep
from latentdiff.config.errors import InputError
from latentdiff.config.faults import did_you_mean

TABLE, PLOT, PAGE = "report.csv", "report.png", "report.html"
_QUOTED_PATH = re.compile(r"^([\w.]+=)'([\w./:-]+)'$")
ROWS = 20
"""Jobs on the terminal, the best ones; all are in the files."""


@dataclass(frozen=True)
class Result:
    """A job with what its run has measured. ``numbers``: the last of each."""

    job: Job
    curve: Curve
    numbers: dict[str, float]
    images: int

    @property
    def value(self) -> float | None:
        """Of the objective, at the last validation."""
        return self.curve[-1][1] if self.curve else None


@dataclass(frozen=True)
class Report:
    """``results`` by the number of the job; ``best``: a job that is done, the one with the best last value."""

    folder: Path
    sweep: Sweep
    results: list[Result]
    best: Result | None


def make_report(folder: Path, *, objective: str | None = None, maximize: bool | None = None) -> Report:
    """Reads the sweep's record and what its runs have written, and writes the files of the report.

    Raises InputError for a folder without a sweep, and an objective that none of the runs has measured.
    """
    from latentdiff.app.sweep.objective import is_maximized

    sweep = record.seen(folder, record.read(folder))
    name = objective or sweep.objective
    if maximize is None:
        maximize = sweep.maximize if name == sweep.objective else is_maximized(name)
    sweep = Sweep(sweep.command, sweep.swept, name, maximize, sweep.jobs)
    lines = {number: lines_of(folder / job.run_dir) for number, job in sweep.jobs.items()}
    names = {name for found in lines.values() for line in found for name in line}
    if objective is not None and objective not in names:
        raise InputError(
            f"--objective: no run of '{folder}' has measured '{objective}'{did_you_mean(objective, names)}"
        )
    results = [_result(sweep.jobs[number], lines[number], name) for number in sorted(sweep.jobs)]
    done = [result for result in results if result.job.state == record.DONE and result.value is not None]
    best = (max if maximize else min)(done, key=lambda result: result.value, default=None)
    report = Report(folder, sweep, results, best)
    _write(report)
    return report


def print_report(folder: Path, *, objective: str | None = None, maximize: bool | None = None) -> Report:
    """``make_report``, with a summary on standard output."""
    from rich.console import Console

    report = make_report(folder, objective=objective, maximize=maximize)
    console = Console(markup=False, highlight=False)
    console.print(_table(report))
    for result in report.results:
        if result.job.state in (record.FAILED, record.REFUSED):
            line = result.job.reason.splitlines()[0]
            print(f"job {result.job.number} {result.job.state}: {line}")
    if report.best is not None:
        print(f"best: job {report.best.job.number}, {named(report.best.job)}\n  {command_of(report.best.job)}")
    print(f"{', '.join(name for name in (TABLE, PLOT, PAGE) if (folder / name).exists())} in {folder}")
    return report


def named(job: Job) -> str:
    return " ".join(f"{key}={value}" for key, value in job.settings.items())


def command_of(job: Job) -> str:
    """Trains the job's setting in a run directory of its own."""
    return as_typed(["python", "train.py", *job.overrides])


def as_typed(words: Sequence[str]) -> str:
    """A command for a shell, without the quotes around paths that the programs put there themselves."""
    return shlex.join(_QUOTED_PATH.sub(r"\1\2", word) for word in words)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, the whole key where that would be the same twice."""
    tails = [key.rpartition(".")[2] for key in keys]
    return {key: tail if tails.count(tail) == 1 else key for key, tail in zip(keys, tails)}


def short_value(text: str) -> str:
    """Of a number four digits."""
    try:
        return f"{float(text):.4g}" if "." in text else text
    except ValueError:
        return text


def _result(job: Job, lines: list[dict], objective: str | None) -> Result:
    curve = [] if objective is None else curve_of(lines, objective)
    numbers = {}
    for line in lines:
        numbers |= {name: value for name, value in line.items() if value is not None}
    return Result(job, curve, numbers, numbers.get("images_seen", 0))


def _ranked(report: Report) -> list[Result]:
    """Those with a value first, the best in front."""
    sign = -1 if report.sweep.maximize else 1
    return sorted(report.results, key=lambda r: (r.value is None, sign * (r.value or 0.0), r.job.number))


def _table(report: Report):
    from rich.table import Table

    from latentdiff.evaluation.report import shown

    sweep, few = report.sweep, len(report.results) <= ROWS
    counts = {state: sum(job.state == state for job in sweep.jobs.values()) for state in record.STATES}
    title = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    caption = None if few else f"the {ROWS} best of {len(report.results)} jobs"
    table = Table("job", title=title, caption=caption)
    for name in short_names(sweep.swept).values():
        table.add_column(name, overflow="fold")
    if sweep.objective is not None:
        table.add_column(sweep.objective, justify="right")
    table.add_column("images", justify="right")
    table.add_column("state")
    for result in report.results if few else _ranked(report)[:ROWS]:
        star = " *" if result is report.best else ""
        value = [] if sweep.objective is None else ["" if result.value is None else shown(result.value) + star]
        settings = [short_value(result.job.settings[key]) for key in sweep.swept]
        table.add_row(str(result.job.number), *settings, *value, f"{result.images:,}", result.job.state)
    return table


def _write(report: Report) -> None:
    from latentdiff.app.sweep.plot import draw
    from latentdiff.durable import new_file
    from latentdiff.evaluation.page import write_page

    folder, sweep = report.folder, report.sweep
    names = list(dict.fromkeys(name for result in report.results for name in result.numbers))
    with new_file(folder / TABLE) as staged, staged.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["job", *sweep.swept, "state", *names, "run_dir", "reason"])
        for result in report.results:
            job = result.job
            cells = [*(job.settings[key] for key in sweep.swept), job.state, *map(result.numbers.get, names)]
            writer.writerow([job.number, *("" if cell is None else cell for cell in cells), job.run_dir, job.reason])
    plots = [draw(report, folder / PLOT)] if any(result.curve for result in report.results) else []
    rows = {
        f"job {result.job.number}": {
            **result.job.settings,
            **({} if result.value is None else {sweep.objective: result.value}),
            "images": result.images,
            "state": result.job.state,
        }
        for result in _ranked(report)
    }
    title = f"Sweep over {', '.join(sweep.swept) or 'nothing'}: {len(rows)} jobs"
    command = (
        sweep.command
        if report.best is None
        else f"{sweep.command}\n\n# the best setting\n{command_of(report.best.job)}"
    )
    write_page(folder / PAGE, title=title, found={}, points=rows, command=command, curves=plots)

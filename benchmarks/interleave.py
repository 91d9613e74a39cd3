"""Contestants timed in turns within one process, each also against itself; peak memory in processes of their own."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

Clock = Callable[[Callable[[], object]], float]
"""Runs a step and returns its seconds."""


def cpu_seconds(step: Callable[[], object]) -> float:
    """CPU time of all threads of this process: other processes do not count."""
    began = time.process_time()
    step()
    return time.process_time() - began


def wall_seconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def gpu_seconds(step: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def cpu_clock(threads: int) -> Clock:
    """CPU time on one thread; wall time on more, whose waiting for each other would count as work."""
    return cpu_seconds if threads == 1 else wall_seconds


@dataclass(frozen=True)
class Spread:
    """Median and range over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Times:
    """Seconds of every contestant in every round: two runs each, one on the way there and one on the way back."""

    def __init__(self, rounds: list[dict[str, tuple[float, float]]]):
        self.rounds = rounds

    def seconds(self, name: str) -> float:
        """Median of one run."""
        return statistics.median(second for times in self.rounds for second in times[name])

    def ratio(self, us: str, them: str) -> Spread:
        """Their time over ours, one ratio a round: above 1 we are faster."""
        return Spread.of([sum(times[them]) / sum(times[us]) for times in self.rounds])

    def null(self, name: str) -> Spread:
        """One run over the other of the same contestant: differences of this size are noise."""
        return Spread.of([first / second for first, second in (times[name] for times in self.rounds)])

    def line(self, label: str, us: str, them: str, goal: float | None = None) -> str:
        """One row of a Markdown table: label, ratio, null controls of both, goal."""
        ratio = self.ratio(us, them)
        return f"| {label} | {ratio} | {self.null(us)} | {self.null(them)} | {verdict(ratio.median, at_least=goal)} |"


HEAD = "| | ratio | null control, ours | null control, theirs | goal |\n|---|---|---|---|---|"


def verdict(value: float, *, at_least: float | None = None, at_most: float | None = None) -> str:
    if at_least is not None:
        return f">= {at_least}: {'met' if value >= at_least else 'missed'}"
    if at_most is not None:
        return f"<= {at_most}: {'met' if value <= at_most else 'missed'}"
    return ""


def race(contestants: Mapping[str, Callable[[], object]], rounds: int, clock: Clock, warm_up: int = 2) -> Times:
    """Each round runs all contestants in one order and then in the opposite one, so that a drift of the machine's
    speed falls on all alike; the next round begins with another contestant."""
    for step in contestants.values():
        for _ in range(warm_up):
            step()
    names, taken = list(contestants), []
    for number in range(rounds):
        shift = number % len(names)
        order = names[shift:] + names[:shift]
        there = {name: clock(contestants[name]) for name in order}
        back = {name: clock(contestants[name]) for name in reversed(order)}
        taken.append({name: (there[name], back[name]) for name in names})
    return Times(taken)


def output_of_process(script: str, *arguments: str) -> str:
    """What a fresh process of ``script`` prints on its last line."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-4000:]}")
    return done.stdout.splitlines()[-1]


def peak_mib(make: Callable[[], Callable[[], object]], steps: int = 3) -> float:
    """Largest resident set while ``make`` builds a step and the step runs, over what the process held before (Linux).

    Import both contestants' packages before, so that either pays for the same imports.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts afresh: a child begins with its parent's
    before = _peak_kib()
    step = make()
    for _ in range(steps):
        step()
    return (_peak_kib() - before) / 1024


def _peak_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

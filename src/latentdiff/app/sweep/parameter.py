"""What a key of the configuration may be in a search: a range of numbers, whole numbers, or one of several values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from latentdiff.config.errors import InputError
from latentdiff.config.faults import did_you_mean

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


class Parameter(Protocol):
    def distribution(self) -> BaseDistribution:
        """Optuna's."""

    def text(self, value: object) -> str:
        """A value of the distribution as it stands on a command line."""

    def ends(self) -> list[object]:
        """Values that show whether the configuration takes all of them."""

    def values(self) -> list[object] | None:
        """All of them, None where they are infinitely many."""


@dataclass(frozen=True)
class Range:
    """Real numbers of [low, high], evenly drawn or by their logarithm; trained with six digits of them."""

    low: float
    high: float
    log: bool

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self.log)

    def text(self, value: float) -> str:
        return repr(min(max(float(f"{value:.6g}"), self.low), self.high))

    def ends(self) -> list[object]:
        return [self.low, self.high]

    def values(self) -> None:
        return None


@dataclass(frozen=True)
class Whole:
    """low, low + step, ... up to high at most."""

    low: int
    high: int
    step: int

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.values()[-1], step=self.step)

    def text(self, value: int) -> str:
        return str(value)

    def ends(self) -> list[object]:
        return [self.values()[0], self.values()[-1]]

    def values(self) -> list[object]:
        return list(range(self.low, self.high + 1, self.step))


@dataclass(frozen=True)
class Choice:
    """Each as it stands on a command line: options of a group, numbers, lists."""

    options: tuple[str, ...]

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.options)

    def text(self, value: str) -> str:
        return value

    def ends(self) -> list[object]:
        return list(self.options)

    def values(self) -> list[object]:
        return list(self.options)


KINDS = ("log", "uniform", "int", "choice")


def read_parameter(key: str, node: object) -> Parameter:
    """``{log: [low, high]}``, ``{uniform: [low, high]}``, ``{int: [low, high]}`` or ``[low, high, step]``, or
    ``{choice: [...]}``. Raises InputError for all else, and for ranges without values."""
    if not isinstance(node, Mapping) or len(node) != 1:
        raise InputError(
            f"space.{key}: expected one of {{log: [low, high]}}, uniform, int, {{choice: [...]}}, got {node}"
        )
    ((kind, values),) = node.items()
    if kind not in KINDS:
        raise InputError(f"space.{key}: there is no '{kind}'{did_you_mean(kind, KINDS)}; available: {', '.join(KINDS)}")
    if not isinstance(values, list) or not values:
        raise InputError(f"space.{key}: {kind} takes a list, got {values}")
    if kind == "choice":
        options = tuple(map(_as_typed, values))
        if len(set(options)) < len(options):
            raise InputError(f"space.{key}: a value is given twice in {values}; once is enough")
        return Choice(options)
    if kind == "int":
        return _whole(key, values)
    return _range(key, values, log=kind == "log")


def _range(key: str, values: list, *, log: bool) -> Range:
    if len(values) != 2 or not all(_is_number(value) for value in values) or not values[0] < values[1]:
        raise InputError(f"space.{key}: expected [low, high] with low < high, got {values}")
    if log and values[0] <= 0:
        raise InputError(f"space.{key}: log needs numbers above 0, got {values}")
    return Range(float(values[0]), float(values[1]), log)


def _whole(key: str, values: list) -> Whole:
    whole = len(values) in (2, 3) and all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    if not whole or not values[0] < values[1] or (len(values) == 3 and values[2] < 1):
        raise InputError(
            f"space.{key}: expected whole numbers [low, high] or [low, high, step], low < high, got {values}"
        )
    return Whole(values[0], values[1], values[2] if len(values) == 3 else 1)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _as_typed(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_as_typed, value))}]"
    return str(value)

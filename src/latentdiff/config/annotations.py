"""Whether a plain value of a configuration fits the annotation of a constructor's argument."""

from __future__ import annotations

import collections.abc
import enum
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

UNKNOWN = object()
"""A value that could not be worked out, reported elsewhere; fits everything."""


@dataclass(frozen=True)
class Part:
    """A nested node with ``_target_``; ``target`` is None where it could not be resolved."""

    name: str
    target: Callable[..., object] | None
    partial: bool


_PLAIN = (bool, int, float, str, type(None))
_LISTS = (list, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def fits(value: object, wanted: Any) -> bool:
    """Whether ``value`` (plain, or a ``Part``) can be given to an argument annotated ``wanted``.

    An int is a float, a bool is no int, and a list is a tuple. Classes of other libraries accept any plain value:
    many take a string or a number besides.
    """
    if value is UNKNOWN or wanted in (Any, object, inspect.Parameter.empty) or isinstance(wanted, typing.TypeVar | str):
        return True
    origin = typing.get_origin(wanted) or wanted
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(wanted))
    if origin is typing.Annotated:
        return fits(value, typing.get_args(wanted)[0])
    if isinstance(value, Part):
        return _part_fits(value, origin)
    if origin is typing.Literal:
        return any(value == option and type(value) is type(option) for option in typing.get_args(wanted))
    if origin in (None, *_PLAIN):
        return _plain_fits(value, origin)
    if origin is tuple:
        return isinstance(value, list | tuple) and _items_fit(value, typing.get_args(wanted))
    if origin in _LISTS:
        kind = (*typing.get_args(wanted), Any)[0]
        return isinstance(value, list | tuple) and all(fits(item, kind) for item in value)
    if origin in _DICTS:
        kind = (*typing.get_args(wanted), Any, Any)[1]
        return isinstance(value, dict) and all(fits(item, kind) for item in value.values())
    return not _needs_part(origin)


def describe(wanted: Any) -> str:
    """``wanted`` in words, as an error message names it."""
    origin = typing.get_origin(wanted)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(option) for option in typing.get_args(wanted)))
    if origin is typing.Literal:
        return " or ".join(repr(option) for option in typing.get_args(wanted))
    if wanted in (None, type(None)):
        return "null"
    if (origin or wanted) is collections.abc.Callable or _needs_part(wanted):
        name = getattr(wanted, "__name__", "callable")
        return f"a part ({name}: a node with _target_)"
    return wanted.__name__ if isinstance(wanted, type) and origin is None else str(wanted).replace("typing.", "")


def shown(value: object) -> str:
    if isinstance(value, Part):
        return f"the part {value.name}"
    if isinstance(value, dict):
        return "a mapping without _target_"
    return "null" if value is None else f"{value!r} ({type(value).__name__})"


def annotations_of(target: Callable[..., object]) -> dict[str, Any]:
    """The evaluated annotations of a constructor or function; one that cannot be evaluated is left out."""
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    module = sys.modules.get(getattr(function, "__module__", None) or target.__module__)
    names = {**vars(typing), **(vars(module) if module else {})}
    found = {}
    for name, wanted in getattr(function, "__annotations__", {}).items():
        try:
            found[name] = eval(wanted, names) if isinstance(wanted, str) else wanted
        except (NameError, TypeError, AttributeError):  # imported for type checkers only
            continue
    return found


def _plain_fits(value: object, wanted: object) -> bool:
    if wanted in (None, type(None)):
        return value is None
    if wanted is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, wanted)  # type: ignore[arg-type]


def _items_fit(value: list | tuple, wanted: tuple) -> bool:
    if not wanted:
        return True
    if len(wanted) == 2 and wanted[1] is Ellipsis:
        return all(fits(item, wanted[0]) for item in value)
    return len(value) == len(wanted) and all(fits(item, kind) for item, kind in zip(value, wanted, strict=True))


def _needs_part(wanted: object) -> bool:
    """Objects of ours and modules cannot be written as plain values."""
    if wanted is collections.abc.Callable:
        return True
    if not inspect.isclass(wanted) or issubclass(wanted, enum.Enum | os.PathLike):
        return False
    ours = wanted.__module__.partition(".")[0] == "latentdiff"
    return ours or any(base.__module__ == "torch.nn.modules.module" for base in wanted.__mro__)


def _part_fits(part: Part, wanted: object) -> bool:
    if part.target is None or not inspect.isclass(part.target):
        return True
    if wanted is typing.Literal or wanted in (None, tuple, *_PLAIN, *_LISTS, *_DICTS):
        return False
    if part.partial or not inspect.isclass(wanted) or not _needs_part(wanted):
        return True
    if getattr(wanted, "_is_protocol", False):
        return all(hasattr(part.target, method) for method in _methods(wanted))
    return wanted is collections.abc.Callable or issubclass(part.target, wanted)


def _methods(protocol: type) -> list[str]:
    return [
        name
        for base in protocol.__mro__
        if getattr(base, "_is_protocol", False) and base is not typing.Protocol
        for name, member in vars(base).items()
        if inspect.isfunction(member) and (name[0] != "_" or name == "__call__")
    ]

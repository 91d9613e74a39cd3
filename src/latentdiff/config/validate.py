"""Every fault of a composed configuration at once, before anything is built."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from latentdiff.config import allowlist
from latentdiff.config.annotations import UNKNOWN, Part, annotations_of, describe, fits, shown
from latentdiff.config.errors import InputError
from latentdiff.config.faults import Fault, did_you_mean
from latentdiff.config.instantiate import NODE_KEYS

DECIDED_LATER = (None, "auto")
"""Values that ``runtime`` stands in for; so is ``???``."""


def validate(
    cfg: DictConfig,
    *,
    injected: Mapping[str, Collection[str]] | None = None,
    runtime: Mapping[str, object] | None = None,
) -> list[Fault]:
    """Walk the tree, import every ``_target_``, and hold its keys against its signature.

    Args:
        injected: dotted key (or pattern) of a node -> arguments that ``build`` will be given as runtime objects.
        runtime: dotted key -> a value such as the program will put there where it now says null, ``auto`` or ``???``.
    """
    cfg = _with_runtime(cfg, runtime or {})
    walk = _Walk(injected or {})
    walk.value_of(cfg, "")
    return list(dict.fromkeys(walk.faults))


def _with_runtime(cfg: DictConfig, runtime: Mapping[str, object]) -> DictConfig:
    cfg = cfg.copy()
    for key, value in runtime.items():
        owner_key, _, name = key.rpartition(".")
        owner = OmegaConf.select(cfg, owner_key) if owner_key else cfg
        if not isinstance(owner, DictConfig) or name not in list(owner) or OmegaConf.is_interpolation(owner, name):
            continue
        if OmegaConf.is_missing(owner, name) or owner[name] in DECIDED_LATER:
            owner[name] = value
    return cfg


class _Walk:
    """Collects faults while it turns the tree into plain values and ``Part``s."""

    def __init__(self, injected: Mapping[str, Collection[str]]) -> None:
        self.faults: list[Fault] = []
        self.injected = injected
        self.copied: dict[str, str] = {}
        """Key that is an interpolation of another -> that one."""

    def fault(self, key: str, message: str) -> None:
        self.faults.append(Fault(key, message))

    def value_of(self, node: object, key: str, *, silent: bool = False) -> object:
        """The plain value or ``Part`` at ``key``. ``silent``: reached through an interpolation, checked elsewhere."""
        if isinstance(node, ListConfig):
            return [self._child(node, i, f"{key}.{i}", silent) for i in range(len(node._content or ()))]
        if not isinstance(node, DictConfig):
            return node
        names = list(node._content) if isinstance(node._content, dict) else []
        values = {name: self._child(node, name, f"{key}.{name!s}" if key else str(name), silent) for name in names}
        return self._part(values, key, silent) if "_target_" in values else values

    def _child(self, node: DictConfig | ListConfig, name: Any, key: str, silent: bool) -> object:
        raw = node._get_node(name, throw_on_missing_value=False)
        assert not isinstance(raw, list)
        interpolated = raw is not None and raw._is_interpolation()
        if raw is not None and interpolated and (other := re.fullmatch(r"\$\{(\w[\w.]*)\}", str(raw._value()))):
            self.copied[key] = other[1]
        try:
            value = node[name]
        except (MissingMandatoryValue, InterpolationToMissingValueError):
            if not interpolated and not silent:
                self.fault(key, f"has no value yet; set it with {key}=VALUE")
            return UNKNOWN
        except OmegaConfBaseException as error:
            if not silent:
                text = str(raw._value()) if raw is not None else "?"
                self.fault(key, f"'{text}' cannot be resolved: {str(error).splitlines()[0]}")
            return UNKNOWN
        if value is None:
            return None
        return self.value_of(value, key, silent=silent or interpolated)

    def _source(self, key: str) -> str:
        """Where the value at ``key`` is written: one wrong value has one fault, however many refer to it."""
        while key in self.copied:
            key = self.copied[key]
        return key

    def _part(self, values: dict, key: str, silent: bool) -> Part:
        name, partial = values["_target_"], values.get("_partial_", False) is True
        target = None
        if name is not UNKNOWN:
            try:
                target = allowlist.resolve(name)
            except InputError as error:
                if not silent:
                    self.fault(f"{key}._target_", str(error))
        if target is not None and not silent:
            self._hold_against_signature(target, values, key, partial)
        return Part(str(name), target, partial)

    def _hold_against_signature(self, target: Any, values: dict, key: str, partial: bool) -> None:
        if not fits(values.get("_partial_", False), bool):
            self.fault(f"{key}._partial_", f"expected true or false, got {shown(values['_partial_'])}")
        try:
            parameters = dict(inspect.signature(target).parameters)
        except (ValueError, TypeError):  # written in C: nothing to hold it against
            return
        kinds = {parameter.kind for parameter in parameters.values()}
        named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        given = set(values) - set(NODE_KEYS)
        arrives = {n for pattern, names in self.injected.items() if fnmatchcase(key, pattern) for n in names}
        for name in [n for n in values if n in given and n not in named]:
            if inspect.Parameter.VAR_KEYWORD not in kinds or str(name).startswith("_"):
                near = did_you_mean(str(name), named)
                hint = f"leave it out, or with '~{key}.{name}' where a file sets it"
                self.fault(f"{key}.{name}", f"{values['_target_']} takes no '{name}'{near or _list(named)}; {hint}")
        for name, parameter in named.items():
            if name in given and name in arrives:
                self.fault(f"{key}.{name}", "is put in by the program and cannot be configured; remove it")
            if parameter.default is parameter.empty and name not in given | arrives and not partial:
                self.fault(f"{key}.{name}", f"{values['_target_']} needs it; set it with +{key}.{name}=VALUE")
        wanted = annotations_of(target)
        for name in [n for n in named if n in given and n in wanted]:
            if not fits(value := values[name], wanted[name]):
                at = f"{key}.{name}" if isinstance(value, Part | dict) else self._source(f"{key}.{name}")
                self.fault(at, f"expected {describe(wanted[name])}, got {shown(value)}")


def _list(names: Collection[str]) -> str:
    return f"; it takes {', '.join(names)}" if names else "; it takes no arguments"

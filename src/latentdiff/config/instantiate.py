"""Building parts from configuration nodes, and reading a stored configuration without trusting it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from latentdiff.config import allowlist, resolvers
from latentdiff.config.errors import InputError

resolvers.register()

MAX_CONFIG_BYTES = 1 << 20
NODE_KEYS = ("_target_", "_partial_")
"""Hydra's reserved keys that a node may hold. Parts always get plain lists and dicts, by keyword."""


def build(node: DictConfig | ListConfig | Mapping | list, inject: Mapping[str, object] | None = None) -> Any:
    """The part that ``node`` describes; nested nodes are built first, a ``_partial_`` one becomes a callable.

    ``inject`` holds built objects that no configuration can describe, passed by keyword to the top target.

    Raises:
        InputError: a target off the allow-list, an unresolvable interpolation, or a constructor's ValueError.
    """
    plain = _plain(node)
    _check(plain, "")
    if not isinstance(plain, dict) or "_target_" not in plain:
        if inject:
            raise InputError("only a node with _target_ can be given runtime objects")
        return _guarded(lambda: instantiate(plain, _convert_="all"), "a list or dict of parts")
    partial = plain.pop("_partial_", False)
    factory = _guarded(lambda: instantiate(plain, _convert_="all", _partial_=True), plain["_target_"])
    factory = functools.partial(factory, **(inject or {}))
    return factory if partial else _guarded(factory, plain["_target_"])


def load_config(path: str | Path) -> DictConfig:
    """A stored configuration, which is resolved already: any ``${...}`` in it is refused, so that a stranger's file
    reads neither the environment nor anything else.

    Raises:
        InputError: missing, too large, no YAML mapping, with YAML aliases or with interpolations.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise InputError(f"'{path}' is larger than {MAX_CONFIG_BYTES} bytes: not a configuration")
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise InputError(f"'{path}' holds YAML aliases (*name); a stored configuration has none")
        cfg = OmegaConf.create(text)
        plain = OmegaConf.to_container(cfg, resolve=False)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise InputError(f"'{path}' is not a configuration: {error}") from error
    if not isinstance(cfg, DictConfig):
        raise InputError(f"'{path}' is not a configuration: expected a mapping, got a list")
    _refuse_interpolations(plain, "", f"'{path}': ")
    return cfg


def _plain(node: object) -> Any:
    try:
        plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException as error:
        raise InputError(str(error)) from error
    if not isinstance(plain, dict | list):
        raise InputError(f"expected a node to build, got {plain!r}")
    _refuse_interpolations(plain, "", "")
    return plain


def _refuse_interpolations(value: object, key: str, where: str) -> None:
    """Hydra would resolve what is left, resolvers such as ``oc.env`` included."""
    for name, child in _children(value):
        _refuse_interpolations(child, f"{key}.{name}" if key else str(name), where)
    if isinstance(value, str) and "${" in value:
        raise InputError(f"{where}key {key}: {value!r} must be a plain value; interpolations are not resolved here")


def _check(value: object, key: str) -> None:
    if isinstance(value, dict) and "_target_" in value:
        for reserved in ("_args_", "_convert_", "_recursive_"):
            if reserved in value:
                raise InputError(f"key {key or '(top)'}: '{reserved}' is not used here, only {' and '.join(NODE_KEYS)}")
        try:
            allowlist.resolve(value["_target_"])
        except InputError as error:
            raise InputError(f"key {key + '.' if key else ''}_target_: {error}") from error
    for name, child in _children(value):
        _check(child, f"{key}.{name}" if key else str(name))


def _children(value: object) -> list[tuple[object, object]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def _guarded(make: Any, name: str) -> Any:
    """``make()``, with what a constructor says against its arguments as an input error."""
    try:
        return make()
    except InstantiationException as error:
        root: BaseException = error
        while not isinstance(root, InputError) and root.__cause__ is not None:
            root = root.__cause__
        if isinstance(root, ValueError):
            raise InputError(f"{name}: {root}") from error
        raise
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error

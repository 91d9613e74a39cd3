"""Composing a configuration with Hydra, with every fault of the command line at once instead of the first one."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from latentdiff.config import resolvers
from latentdiff.config.faults import Fault, did_you_mean
from latentdiff.config.instantiate import NODE_KEYS
from latentdiff.config.misread import ELSEWHERE, misread

resolvers.register()

VERSION_BASE = "1.3"
NO_PARTS = ("hydra", "sweep")
"""Folders of settings that are no parts of a configuration: Hydra's own, and search spaces of `latentdiff sweep`."""
LINE = 80
"""Characters of a line that lists names."""

COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)


@contextmanager
def opened(configs: Path, *, job_name: str = "check") -> Iterator[ConfigLoader]:
    """Hydra with ``configs`` as its folder, closed again afterwards."""
    with initialize_config_dir(str(configs.resolve()), job_name=job_name, version_base=VERSION_BASE):
        yield GlobalHydra.instance().config_loader()


def compose(configs: Path, config_name: str, overrides: Sequence[str]) -> tuple[DictConfig | None, list[Fault]]:
    """The composed configuration without the node ``hydra``, and the faults of the command line and the files.

    Overrides at fault are left out, so that the rest can still be validated; None where nothing can be composed.
    """
    with opened(configs) as loader:
        parsed, faults = _parse(overrides, loader)
        _list_searched(parsed, loader)
        in_groups = [fault for override in parsed for fault in _group_faults(override, loader)]
        if in_groups:
            return None, faults + in_groups
        unknown: list[Override] = []
        while True:
            lines = [override.input_line or "" for override in parsed]
            try:
                cfg = hydra_compose(config_name, overrides=lines, return_hydra_config=True)
                _make_hydra_resolvable(cfg)
            except COMPOSE_ERRORS as error:
                culprit = _culprit(error, parsed)
                if culprit is None:
                    faults += _unknown_faults(unknown, None, loader)
                    own = [*_unknown_roots(parsed, config_name, loader), _file_fault(error, configs)]
                    return None, faults if faults and _is_unchosen(error) else [*faults, *own]
                parsed.remove(culprit)
                if _is_unknown(error):
                    unknown.append(culprit)
                else:
                    faults.append(_value_fault(culprit, error))
                continue
            break
        faults += _unknown_faults(unknown, cfg, loader)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg, faults


def _parse(overrides: Sequence[str], loader: ConfigLoader) -> tuple[list[Override], list[Fault]]:
    parser = OverridesParser.create(config_loader=loader)
    parsed, faults = [], []
    words = [line for line in overrides if "=" not in line.lstrip("=") and not line.startswith("~")]
    if words:
        faults.append(misread(words, {group: _options(group, loader) for group in _groups("", loader)}))
    for line in [line for line in overrides if line not in words]:
        try:
            override = parser.parse_overrides([line])[0]
        except HydraException as error:
            key, reason = line.partition("=")[0], str(error).splitlines()[0]
            faults.append(Fault(key, f"cannot read '{line}' ({reason}); quote the value for Hydra: '{key}=\"...\"'"))
            continue
        if override.is_sweep_override():
            faults.append(
                Fault(
                    override.key_or_group,
                    f"'{line}' lists several values, which is a sweep; add -m to run them all, "
                    "write a list as [a,b], or quote a text as '\"a,b\"'",
                )
            )
        else:
            parsed.append(override)
    return parsed, faults


def _list_searched(parsed: Sequence[Override], loader: ConfigLoader) -> None:
    """Has the loader list the groups of hydra.searchpath too, at which Hydra itself looks only while composing."""
    searched = loader.get_search_path()
    for override in parsed:
        folders = override.value() if override.key_or_group == "hydra.searchpath" else None
        for folder in folders if isinstance(folders, list) else ():
            searched.prepend("hydra.searchpath", str(folder), "schema")
            loader.repository.initialize_sources(searched)  # type: ignore[attr-defined]


def _group_faults(override: Override, loader: ConfigLoader) -> Iterator[Fault]:
    """Options that do not exist, of a group that does; and groups named with a slash that do not."""
    group = override.key_or_group
    if "." in group or override.is_delete():
        return
    options = _options(group, loader)
    if not options:
        if "/" in group and not group.startswith("hydra/"):
            near = did_you_mean(group, _groups("", loader))
            yield Fault(group, f"there is no configuration group '{group}'{near}")
        return
    value = override.value()
    for option in value if isinstance(value, list) else [value]:
        if option == "???" or (isinstance(option, str) and option.removesuffix(".yaml") in options):
            continue
        absent = f"there is no '{group}/{option}'{did_you_mean(str(option), options)}" if option else "choose one"
        yield Fault(group, absent + _available(options))


def _available(options: Sequence[str]) -> str:
    listed = f"available: {', '.join(options)}"
    lines = textwrap.wrap(listed, LINE, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n" + "\n".join(lines)


def _options(group: str, loader: ConfigLoader) -> list[str]:
    """Names below ``group``, those in its folders as ``folder/name``."""
    own = loader.get_group_options(group, results_filter=ObjectType.CONFIG)
    below = [f"{sub}/{name}" for sub in loader.list_groups(group) for name in _options(f"{group}/{sub}", loader)]
    return sorted({*own, *below})


def _groups(parent: str, loader: ConfigLoader) -> list[str]:
    names = [f"{parent}/{name}" if parent else name for name in loader.list_groups(parent) if name not in NO_PARTS]
    return list(chain.from_iterable([name, *_groups(name, loader)] for name in names))


def _culprit(error: Exception, parsed: Sequence[Override]) -> Override | None:
    """The override that Hydra's message names."""
    text = str(error)
    for override in parsed:
        key, line = override.get_key_element().lstrip("+~"), override.input_line or ""
        named = (f"Could not override '{key}'", f"is already at '{override.key_or_group}'", f"Could not delete '{key}")
        if text.startswith(f"Error merging override {line}") or any(part in text for part in named):
            return override
        if override.is_delete() and text.startswith("Could not delete from config") and f"'{key}'" in text:
            return override
        if text.startswith(f"Multiple values for {key}."):
            return override
    return None


def _is_unchosen(error: Exception) -> bool:
    return str(error).startswith("You must specify")


def _is_unknown(error: Exception) -> bool:
    return "Could not override" in str(error) or "Could not delete" in str(error)


def _value_fault(override: Override, error: Exception) -> Fault:
    key = override.key_or_group
    if str(error).startswith("Multiple values"):
        return Fault(key, "is given more than once; leave one")
    if "is already at" in str(error):
        return Fault(key, f"exists already; write {key}=VALUE without the +")
    reason = reason_of(error.__cause__ or error)
    return Fault(key, f"{reason} (in '{override.input_line}')")


def reason_of(error: BaseException) -> str:
    """OmegaConf's first line, with types as Python calls them."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    words = {"Integer": "int", "Float": "float", "Boolean": "bool (true or false)", "String": "str"}
    match = re.fullmatch(r"Value '(.*)' of type '(\w+)' could not be converted to (\w+)", line, re.DOTALL)
    if match:
        return f"expected {words.get(match[3], match[3])}, got '{match[1]}' ({match[2]})"
    if "is not Optional" in line:
        return "expected a value, got null"
    if line.startswith("Invalid value assigned") and "ListConfig" in line:
        return "expected a list, [a,b]"
    return line


def _unknown_faults(unknown: Sequence[Override], cfg: DictConfig | None, loader: ConfigLoader) -> list[Fault]:
    faults = []
    for override in unknown:
        key = override.key_or_group
        if _options(key, loader) and (cfg is None or key in cfg):
            faults.append(Fault(key, f"no '{key}' is chosen here that could be replaced; add one with +{key}=NAME"))
            continue
        names = [] if cfg is None else [name for name in _keys(cfg, "") if not name.startswith("hydra.")]
        names += [] if "." in key else _groups("", loader)
        meant = [name for name in ELSEWHERE.get(key, ()) if name in names]
        near = f"; did you mean {' or '.join(meant)}?" if meant else ""
        if _options(key, loader):
            faults.append(Fault(key, f"this program has no such key{near}"))
            continue
        near = near or did_you_mean(key, [name for name in names if name != key]) or _beside(key, cfg)
        faults.append(Fault(key, f"there is no such key to be {'removed' if override.is_delete() else 'set'}{near}"))
    return faults


def _beside(key: str, cfg: DictConfig | None) -> str:
    """The keys of the node in which ``key`` is not."""
    owner = key.rpartition(".")[0]
    node = OmegaConf.select(cfg, owner, throw_on_resolution_failure=False) if cfg is not None and owner else None
    names = [str(name) for name in node if name not in NODE_KEYS] if isinstance(node, DictConfig) else []
    return f"; {owner} has {', '.join(names)}" if names else ""


def _unknown_roots(parsed: Sequence[Override], config_name: str, loader: ConfigLoader) -> list[Fault]:
    """Keys that no choice would bring: neither of the program's schema nor a group."""
    schema = ConfigStore.instance().repo.get(f"{config_name}_schema.yaml")
    if schema is None:
        return []
    fields = [str(name) for name in schema.node]  # type: ignore[union-attr]
    keys = [each.key_or_group for each in parsed if not each.is_add() and "." not in each.key_or_group]
    strange = [key for key in keys if key not in fields and not _options(key, loader)]
    return [Fault(key, f"there is no such key to be set{did_you_mean(key, fields)}") for key in strange]


def _keys(node: DictConfig, prefix: str) -> Iterator[str]:
    for name in list(node):
        yield f"{prefix}{name}"
        child = node._get_node(name)
        if isinstance(child, DictConfig) and isinstance(child._content, dict):
            yield from _keys(child, f"{prefix}{name}.")


def _file_fault(error: Exception, configs: Path) -> Fault:
    """A fault in a YAML, not in the command line."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = list(error.options or [])
        origin = _named_in(group, option, configs)
        listing = _available(options) if options else ""
        return Fault(group, f"there is no '{error.missing_cfg_file}'{origin}{did_you_mean(option, options)}{listing}")
    match = re.match(r"In '(?P<file>.+?)': \w+ raised while composing config:\n(?P<rest>.*)", text, re.DOTALL)
    if match:
        rest = match["rest"]
        key = re.search(r"full_key: (\S+)", rest)
        full_key, near = key[1] if key else "", ""
        reason = reason_of(ValueError(rest))
        unknown = re.match(r"Key '(.+?)' (is )?not in '(\w+)'", rest)
        if unknown:
            schemas = [node.node for node in ConfigStore.instance().repo.values() if hasattr(node, "node")]
            fields = [
                list(node) for node in schemas if getattr(OmegaConf.get_type(node), "__name__", None) == unknown[3]
            ]
            reason, near = "there is no such key", did_you_mean(unknown[1], chain.from_iterable(fields))
        return Fault(full_key, f"{reason} (in {configs / match['file']}.yaml){near}")
    missing = re.match(r"You must specify '(.+?)'", text)
    if missing:
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        return Fault(missing[1], f"must be chosen: {missing[1]}=NAME; --help describes them" + _available(options))
    return Fault("", text.strip())


def _named_in(group: str, option: str, configs: Path) -> str:
    """The file whose defaults list chooses ``group: option``; Hydra names the root for every override."""
    line = re.compile(
        rf"^\s*-\s*(override\s+|optional\s+)*/?{re.escape(group)}(@\S+)?:\s*{re.escape(option)}\s*(#|$)", re.M
    )
    for path in sorted(configs.rglob("*.yaml")):
        if line.search(path.read_text(encoding="utf-8", errors="replace")):
            return f" (in {path})"
    return ""


def _make_hydra_resolvable(cfg: DictConfig) -> None:
    """``${hydra:...}`` resolves as in a job, whose number is not known yet."""
    with read_write(cfg), read_write(cfg.hydra.runtime), open_dict(cfg):
        for name, value in {"id": "0", "num": 0}.items():
            if OmegaConf.is_missing(cfg.hydra.job, name):
                cfg.hydra.job[name] = value
        HydraConfig.instance().set_config(cfg)
        cfg.hydra.runtime.output_dir = str(cfg.hydra.run.dir)
    HydraConfig.instance().set_config(cfg.copy())

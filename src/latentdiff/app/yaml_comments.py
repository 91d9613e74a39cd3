"""What the comments in ``configs/`` say: the one source of what --help tells of experiments, options and keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

_VALUE = r"""(?P<value>"[^"]*"|'[^']*'|[^#\s].*?)"""
_KEY = re.compile(rf"(?P<indent> *)(?P<name>\w+):(?: +{_VALUE})?(?: +# *(?P<comment>.*))?")
_GROUP = re.compile(r"(?:override |optional )*/?(?P<group>[\w/]+)(?:@\S+)?")


@dataclass(frozen=True)
class Key:
    """A key of a root configuration as it is written there; ``value`` is empty where others are below it."""

    name: str
    value: str
    comment: str


def sentence(path: Path) -> str:
    """The first sentence of the comment at the top of a YAML, without a full stop at its end; empty without one."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines[1:] if lines and lines[0].startswith("# @package") else lines:
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    return re.split(r"\.(?:\s|$)", " ".join(comment), maxsplit=1)[0]


def root_keys(path: Path) -> list[Key]:
    """Keys with a value, or with others below them and a comment, in the order of the file, those below one dotted."""
    keys: list[Key] = []
    owners: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if keys and re.match(r" +#", line):
            last = keys.pop()
            keys.append(Key(last.name, last.value, f"{last.comment} {line.strip().removeprefix('#').strip()}"))
        match = _KEY.fullmatch(line)
        if match is None or match["name"] in ("defaults", "_target_"):
            continue
        indent = len(match["indent"])
        owners = [(deep, name) for deep, name in owners if deep < indent]
        name = ".".join([*(name for _, name in owners), match["name"]])
        owners.append((indent, match["name"]))
        if match["value"] or match["comment"]:
            keys.append(Key(name, match["value"] or "", match["comment"] or ""))
    return keys


def groups(configs: Path, root: str) -> list[str]:
    """Groups that the defaults lists of ``root`` and of their options choose from, without Hydra's own."""
    found: list[str] = []
    waiting = [configs / f"{root}.yaml"]
    while waiting:
        named = [group for group in _named(waiting.pop()) if (configs / group).is_dir()]
        new = [group for group in dict.fromkeys(named) if group not in (*found, "hydra")]
        found += new
        waiting += [path for group in new for path in sorted((configs / group).rglob("*.yaml"))]
    return found


def _named(path: Path) -> Iterator[str]:
    for entry in (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", []):
        for key in entry if isinstance(entry, dict) else ():
            if match := _GROUP.fullmatch(key):
                yield match["group"]


def options(configs: Path, group: str) -> list[str]:
    """Names of a group's options, those in its folders as ``folder/name``."""
    folder = configs / group
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.relative_to(folder).parts), path))
    return [path.relative_to(folder).with_suffix("").as_posix() for path in paths]

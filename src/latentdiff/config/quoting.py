"""Free texts and paths on the command line, quoted for Hydra's override grammar.

In that grammar a comma sweeps, braces make a dict, and an equals sign or a quote is an error. Values of the keys
named here are taken as the user typed them, unless they are quoted already, null, or a list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString

TEXT_KEYS = ("prompt", "negative_prompt", "*.prompt", "*.negative_prompt")
"""Free text: no sweep by commas, and ``${`` is just text."""

PATH_KEYS = (
    "checkpoint",
    "run_dir",
    "resume",
    "reference",
    "images",
    "pipeline",
    "card",
    "prompts",
    "init_backbone",
    "image",
    "mask",
    "map",
    "data.train",
    "data.val",
    "data.cache",
    "data.root",
    "paths.*",
    "*.checkpoint",
    "*.path",
    "*.paths",
    "*.urls",
    "*.root",
    "*.weights",
    "*.save_dir",
    "*.cache_dir",
    "*.overrides",
)
"""Files, folders, URLs, shard patterns, and overrides of another run; ``${...}`` stays an interpolation."""
SWITCHES = ("backbone.checkpoint", "data.weights")
"""Keys of ``PATH_KEYS`` that are none."""
OPTIONAL_GROUPS = ("debug", "logger", "metrics")
"""Groups of which nothing may be chosen: a null, which Hydra refuses on the command line, is an empty list to it."""

_OVERRIDE = re.compile(r"(\+{0,2})([A-Za-z_][\w.\-]*)=(.*)", re.DOTALL)
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_SWEEP = re.compile(r"\s*(choice|glob|shuffle|sort|tag)\(.*\)\s*", re.DOTALL)
_OPENING, _CLOSING = "[{(", "]})"


def quote_overrides(overrides: Sequence[str], *, multirun: bool = False) -> list[str]:
    """The overrides with the values of text and path keys quoted; quoting twice changes nothing. ``logger=null`` is put
    as Hydra takes it.

    In a multirun a comma still sweeps over paths, and ``choice(...)`` over texts.
    """
    return [_quote_override(override, multirun) for override in overrides]


def requote(override: str) -> str:
    """An override as a sweeper wrote it, with the values of text and path keys in quotes instead of escapes."""
    parsed = OverridesParser.create().parse_override(override)
    if not _listed(parsed.key_or_group, (*TEXT_KEYS, *PATH_KEYS)) or not isinstance(parsed.value(), str | list):
        return override
    return f"{parsed.get_key_element()}={_in_quotes(parsed.value())}"


def _in_quotes(value: object) -> str:
    if isinstance(value, list):
        return f"[{','.join(_in_quotes(item) for item in value)}]"
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    return "null" if value is None else str(value)


def _quote_override(override: str, multirun: bool) -> str:
    match = _OVERRIDE.fullmatch(override)
    if match is None:
        return override
    plus, key, value = match.groups()
    if key in OPTIONAL_GROUPS and value.strip().lower() == "null":
        return f"{plus}{key}=[]"
    is_text = _listed(key, TEXT_KEYS)
    if not (is_text or _listed(key, PATH_KEYS)) or (multirun and _SWEEP.fullmatch(value)):
        return override
    if multirun and not is_text:
        return f"{plus}{key}=" + ",".join(_quote(part, is_text) for part in _split(value))
    return f"{plus}{key}={_quote(value, is_text)}"


def _listed(key: str, patterns: Sequence[str]) -> bool:
    return key not in SWITCHES and any(fnmatchcase(key, pattern) for pattern in patterns)


def _quote(value: str, is_text: bool) -> str:
    bare = value.strip()
    if bare.startswith("[") and bare.endswith("]"):
        inner = bare[1:-1]
        return "[" + ",".join(_quote(part.strip(), is_text) for part in _split(inner)) + "]" if inner.strip() else "[]"
    if value == "" or bare.lower() == "null" or bare == "???" or _QUOTED.fullmatch(bare):
        return value
    if is_text:  # OmegaConf reads ${ in any string; a backslash before it, and those before that, are escapes
        value = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value)
    return QuotedString(value, Quote.single).with_quotes()


def _split(text: str) -> list[str]:
    """At the commas outside quotes, brackets and braces.

    A quote counts as one only where a value begins, so that an apostrophe does not swallow the rest.
    """
    parts, depth, at, start = [], 0, 0, 0
    while at < len(text):
        quoted = _QUOTED.match(text, at) if not text[start:at].strip() else None
        if quoted:
            at = quoted.end()
            continue
        if text[at] in _OPENING:
            depth += 1
        elif text[at] in _CLOSING:
            depth = max(0, depth - 1)
        elif text[at] == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
        at += 1
    return [*parts, text[start:]]

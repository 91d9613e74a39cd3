"""One fault of a configuration, and the nearest valid names to a mistyped one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Fault:
    """``key``: the dotted key at fault, empty where no single key is; ``message``: expected, got, what to do."""

    key: str
    message: str

    def __str__(self) -> str:
        return f"key {self.key}: {self.message}" if self.key else self.message


def did_you_mean(name: str, options: Iterable[str], limit: int = 3) -> str:
    """``'; did you mean a or b?'``, or nothing where no option is near.

    Names with dots or slashes are compared as a whole and by their last part, so that ``channels`` finds
    ``backbone.channels`` and ``sd1`` finds ``paper/sd1``.
    """
    options = sorted({str(option) for option in options})
    near = [option for option in options if option.lower() == name.lower()]
    near += [option for option in get_close_matches(name, options, limit, 0.6) if option not in near]
    if len(near) < limit:
        tails = get_close_matches(_last(name), sorted({_last(option) for option in options}), 2, 0.75)
        near += [o for tail in tails for o in options if _last(o) == tail and o not in near]
    return f"; did you mean {' or '.join(near[:limit])}?" if near else ""


def _last(name: str) -> str:
    return re.split(r"[./]", name)[-1]

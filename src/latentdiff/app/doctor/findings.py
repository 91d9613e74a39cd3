"""What ``latentdiff doctor`` has found, one line or a few each."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

OK, NOTE, PROBLEM = "ok", "note", "problem"
WIDTH = 80


@dataclass(frozen=True)
class Finding:
    """``level``: OK, NOTE (worth knowing) or PROBLEM (a run would stop here)."""

    level: str
    subject: str
    text: str

    def __str__(self) -> str:
        head = f"{self.level:8}{self.subject:15}"
        lines = textwrap.wrap(self.text, WIDTH - len(head), break_on_hyphens=False, break_long_words=False)
        return "\n".join([head + lines[0], *(" " * len(head) + line for line in lines[1:])])

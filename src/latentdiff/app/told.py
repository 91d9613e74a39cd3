"""What is printed for somebody who asked for it, and may stop reading before its end (``| head``)."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator


def show(text: str) -> None:
    """On standard output; no error where nobody reads it to the end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end


@contextlib.contextmanager
def shown_at_once() -> Iterator[None]:
    """``show`` of all that is printed meanwhile, when it ends."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        show(printed.getvalue().removesuffix("\n"))


def counted(number: int, what: str) -> str:
    """``1 core``, ``4,000 cores``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"

"""A disk that refuses costs what was to be written, not the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)


@contextmanager
def not_fatal(what: str | Path, *, told: set[str] | None = None) -> Iterator[None]:
    """What the disk refuses is mentioned, and given up; once for each name in ``told``, where that is given."""
    try:
        yield
    except OSError as error:
        if told is None or str(what) not in told:
            _log.warning("'%s' left as it is: %s", what, error)
        if told is not None:
            told.add(str(what))

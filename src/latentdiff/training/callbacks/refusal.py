"""A disk that refuses costs what was to be written, not the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)


@contextmanager
def not_fatal(path: Path) -> Iterator[None]:
    """A write of ``path`` that the disk refuses is mentioned, and given up."""
    try:
        yield
    except OSError as error:
        _log.warning("'%s' not written: %s", path, error)

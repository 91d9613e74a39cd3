"""What every test has."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keeps what is remembered of shards out of the user's own cache, in child processes too."""
    before = os.environ.get("LATENTDIFF_CACHE")
    os.environ["LATENTDIFF_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["LATENTDIFF_CACHE"]
    else:
        os.environ["LATENTDIFF_CACHE"] = before

"""Numbers of batches and images that have to be positive."""

from __future__ import annotations

from latentdiff.config.errors import InputError


def at_least_one(key: str, value: int) -> int:
    """``value``; raises InputError, with ``key`` below ``callbacks``, where it is less than 1."""
    if value < 1:
        raise InputError(f"callbacks.{key}: expected at least 1, got {value}")
    return value

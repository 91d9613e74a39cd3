"""Which process says what went wrong in training."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from latentdiff.app.run.rank_faults import RankFaults
from latentdiff.config.errors import InputError, RunError


@pytest.mark.parametrize(
    ("rank", "error", "line"),
    [
        (1, InputError("3 samples are broken"), "error: rank 1: 3 samples are broken\n"),
        (2, RunError("no"), "error: rank 2: no\n"),
        (0, InputError("no"), ""),  # launch prints it
        (1, RuntimeError("connection closed"), ""),  # launch prints its traceback
    ],
)
def test_a_rank_tells_its_own_faults(capsys, rank: int, error: Exception, line: str) -> None:
    trainer = SimpleNamespace(global_rank=rank, is_global_zero=rank == 0)
    RankFaults().on_exception(trainer, None, error)
    assert capsys.readouterr().err == line

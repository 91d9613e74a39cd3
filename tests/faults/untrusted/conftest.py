"""Nothing that a stranger wrote is executed: each attempt would leave a file behind, and none does.

An attempt is refused with an InputError that says what to do, or, where ``harmless``, read without harm.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError

CANARY, EVIL, SECRET = "canary", "evil.pt", "s3cret-value-of-the-environment"


class Payload:
    """Unpickled, it writes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.canary}",)


@dataclass
class Place:
    """A folder with a pickle that runs, where what is executed leaves the file ``canary``."""

    folder: Path
    executed: list[str]
    tried: list[str]

    @property
    def canary(self) -> Path:
        return self.folder / CANARY

    @contextlib.contextmanager
    def attempt(self, name: str, *, harmless: bool = False, match: str | None = None) -> Iterator[None]:
        """Asserts that the block ends in an InputError (unless ``harmless``) that names no secret, and nothing ran."""
        self.tried.append(name)
        with contextlib.nullcontext() if harmless else pytest.raises(InputError, match=match) as refused:
            yield
        assert harmless or SECRET not in str(refused.value)
        if self.canary.exists():
            self.executed.append(name)
        assert not self.canary.exists(), name


@pytest.fixture(scope="session")
def score() -> Iterator[tuple[list[str], list[str]]]:
    executed: list[str] = []
    tried: list[str] = []
    yield executed, tried
    print(f"\n{len(executed)} executions out of {len(tried)} untrusted inputs")
    assert executed == []


@pytest.fixture
def place(tmp_path: Path, score, monkeypatch: pytest.MonkeyPatch) -> Place:
    folder = tmp_path / "one" / "two"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LATENTDIFF_SECRET", SECRET)
    torch.save({"state_dict": {"w": torch.zeros(1)}, "x": Payload(folder / CANARY)}, folder / EVIL)
    return Place(folder, *score)


@pytest.fixture(scope="session")
def payload() -> type[Payload]:
    return Payload


@pytest.fixture(scope="session")
def stranger() -> Callable[..., Path]:
    """Makes a whole checkpoint, hashes and all, with a configuration."""

    def make(folder: Path, config: dict | str, *, kind: str = "autoencoder", train_state: object = None) -> Path:
        first = None if kind == "autoencoder" else {"path": "ae", "hash": "0"}
        text = config if isinstance(config, str) else yaml.safe_dump(config)
        weights = {"w": torch.zeros(1)}
        state = {"kind": kind, "model": weights, "ema": weights, "config": text, "first_stage": first}
        store.save(folder, **state, counters={"batches_seen": 1, "images_seen": 1}, train_state=train_state)
        return folder

    return make

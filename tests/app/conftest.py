"""A program of a few lines in place of train.py, with configurations of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from latentdiff.app import launch

FILES = {
    "hydra/plain.yaml": "# @package hydra\nrun: {dir: .}\nsweep: {dir: ., subdir: .}\noutput_subdir: null\n",
    "sampler/ddim.yaml": "steps: 5\n",
    "sampler/euler.yaml": "steps: 6\n",
    "task/plain.yaml": "_target_: torch.nn.Dropout\np: 0.25\n",
}


@pytest.fixture
def program(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``program(job, *argv) -> exit code`` in an empty folder; configs/train.yaml is the module's ``ROOT``."""
    for name, text in {"train.yaml": request.module.ROOT, **FILES}.items():
        path = tmp_path / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)

    def run(job, *argv: str) -> int:
        monkeypatch.setattr(sys, "argv", [str(tmp_path / "train.py"), *argv])
        return launch.run(job, "train")

    return run

"""What is at fault in a command, with the programs' own configurations, and what is found without torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from latentdiff.app.composed import checked

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
QUICK = """
import sys
from pathlib import Path
from latentdiff.app import launch
from latentdiff.app.composed import checked
_, faults = checked(Path(sys.argv[1]), sys.argv[2], sys.argv[2], sys.argv[3:], runs=True)
assert faults, "no fault"
assert "torch" not in sys.modules, "torch was imported"
"""


@pytest.mark.parametrize(
    ("program", "line", "said"),
    [
        ("sample", "seed=3", r"^key seed: there is no such key to be set; did you mean seeds\?$"),
        ("sample", "validate_every=3", "^key validate_every: there is no such key to be set$"),
        ("sample", "data=shapes", "^key data: this program has no such key$"),
        ("evaluate", "debug=short", "^key debug: this program has no such key$"),
        (
            "train",
            "experiement=ldm_txt2img",
            r"^key experiement: .* did you mean experiment\?\nkey experiment: must be",
        ),
        ("train", "experiment=ldm_txt2img optim.learning_rate=1", "be set; optim has lr, optimizer, schedule$"),
        ("sample", "", "^checkpoint: which one\\? Give one of checkpoint=PATH, card=PATH$"),
        ("sample", "checkpoint=/nowhere/run", "^no checkpoint found under '/nowhere/run': there is no '/nowhere'$"),
    ],
)
def test_faults(program: str, line: str, said: str) -> None:
    _, faults = checked(CONFIGS, program, program, line.split(), runs=True)
    assert re.search(said, "\n".join(map(str, faults)))


@pytest.mark.parametrize("line", ["seeed=3", "checkpoint=/nowhere/run", "batch_size=many"])
def test_torch_is_not_imported_for_a_fault_that_needs_none(line: str) -> None:
    command = [sys.executable, "-c", QUICK, str(CONFIGS), "sample", line]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

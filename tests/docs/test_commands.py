"""The commands that the documents show compose and validate: no option in them is out of date."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from latentdiff.app import schema
from latentdiff.config.compose import compose
from latentdiff.config.quoting import quote_overrides
from latentdiff.config.sweeps import expand_sweeps
from latentdiff.config.validate import validate

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.md")])
QUICK = [path if path.name == "README.md" else pytest.param(path, marks=pytest.mark.slow) for path in DOCUMENTS]
PROGRAM = re.compile(r"(?:python|torchrun .*?|srun .*?) (train|evaluate|sample)\.py (.*)")
PLACEHOLDER = re.compile(r"=(NAME|N|S|T|M|TEXT)\b|=DD:|\.\.\.|\||\[[a-z_.]+=|<|[$]|--(cfg|help|info|shell)")
"""What a command is not, but its pattern: optional arguments in brackets, names to be replaced, shell variables."""


@pytest.mark.parametrize("path", QUICK, ids=lambda path: path.name)
def test_commands_compose(path: Path) -> None:
    schema.register()
    for program, line in _commands(path):
        overrides, multirun = _overrides(line)
        if overrides is None:
            continue
        quoted = quote_overrides(overrides, multirun=multirun)
        for job in expand_sweeps(ROOT / "configs", quoted) if multirun else [quoted]:
            cfg, faults = compose(ROOT / "configs", program, job)
            root = schema.ROOTS[program]
            if not faults:
                faults = validate(cfg, injected=root.injected, runtime=root.runtime)
            assert not faults, f"{path.name}: {program}.py {line}: {[str(fault) for fault in faults]}"


def _commands(path: Path) -> list[tuple[str, str]]:
    """(program, arguments) of each command that a reader could type, by the lines of code that begin with one."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip().lstrip("$ ") for line in text.splitlines() if re.match(r"(    |```|\$ )?\s*\S", line)]
    found = [match.groups() for line in lines if (match := PROGRAM.match(line))]
    return list(dict.fromkeys((program, re.sub(r"\s+#.*", "", line)) for program, line in found))


def _overrides(line: str) -> tuple[list[str] | None, bool]:
    """None where the line is a pattern, not a command."""
    if PLACEHOLDER.search(line):
        return None, False
    words = shlex.split(line)
    options = [word for word in words if word.startswith("-") and "=" not in word]
    if set(options) - {"-m", "--multirun"}:
        return None, False
    overrides = [word for word in words if not word.startswith("-")]
    return (overrides if all("=" in word or word.startswith("~") for word in overrides) else None), bool(options)


def test_the_readme_shows_commands() -> None:
    assert len([line for _, line in _commands(ROOT / "README.md") if _overrides(line)[0]]) >= 8

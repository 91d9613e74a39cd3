"""``--from RUN_DIR``: the command line that made a run, with some settings changed, in a run directory of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from latentdiff.app.processes import warn
from latentdiff.config.errors import InputError

FLAG = "--from"
OWN = ("run_dir",)
"""Keys that a rerun does not take over: it has a run directory of its own."""


def expanded(argv: Sequence[str], program: str) -> list[str]:
    """``argv`` with ``--from RUN_DIR`` replaced by that run's settings; those given beside it take their place.

    Raises InputError for a folder that no run of this program has made. Warns where the code is not what it was then.
    """
    rest, folders = [], []
    waiting = iter(argv)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name == FLAG:
            folders.append(value if equals else next(waiting, ""))
        else:
            rest.append(argument)
    if not folders:
        return list(argv)
    if len(folders) > 1 or not folders[0]:
        raise InputError(f"{FLAG}: expected one run directory, got {len([each for each in folders if each])}")
    return _again(Path(folders[0]), rest, program)


def _again(run_dir: Path, given: list[str], program: str) -> list[str]:
    from latentdiff.app.run.record import ENVIRONMENT, OVERRIDES

    try:
        saved = _lines(yaml.safe_load((run_dir / OVERRIDES).read_text(encoding="utf-8")) or [])
        made = json.loads((run_dir / ENVIRONMENT).read_text(encoding="utf-8"))
        maker, revision, searched = made["program"], made["revision"], _lines(made["searched"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise InputError(
            f"{FLAG}: '{run_dir}' holds no readable {OVERRIDES} and {ENVIRONMENT}, which every run writes when it "
            f"starts; name the run directory of {program}.py"
        ) from error
    if maker != program:
        raise InputError(f"{FLAG}: '{run_dir}' was made by {maker}.py; give the same to that program")
    _warn_of_other_code(run_dir, revision)
    replaced = {*map(_key, given), *OWN}
    searched = [] if any(each.startswith("--config-dir") for each in given) else searched
    folders = [f"hydra.searchpath=[{','.join(map(repr, searched))}]"] if searched else []
    return [*folders, *(line for line in saved if _key(line) not in replaced), *given]


def _lines(value: object) -> list[str]:
    """Raises TypeError where ``value`` is no list of texts."""
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise TypeError
    return value


def _key(argument: str) -> str:
    return argument.lstrip("+~").partition("=")[0]


def _warn_of_other_code(run_dir: Path, then: str | None) -> None:
    import latentdiff
    from latentdiff.evaluation.card import source_revision

    now = source_revision(Path(latentdiff.__file__).parent)
    if then != now:
        warn(f"'{run_dir}' was made by the code of commit {_short(then)}, this is {_short(now)}; results may differ")
    elif (now or "").endswith("+changes"):
        warn(f"'{run_dir}' was made by code with changes that are in no commit; results may differ")


def _short(revision: str | None) -> str:
    commit, plus, changes = (revision or "").partition("+")
    return f"{commit[:10]}{plus}{changes}" if revision else "no repository"

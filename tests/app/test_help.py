"""--help says what configs/ says, in 80 columns, without torch, and to whom stops reading."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import latentdiff
from latentdiff.app.help import GROUPS, PROGRAMS, WIDTH, group_help, program_help
from latentdiff.app.yaml_comments import Key, groups, options, root_keys, sentence
from latentdiff.config.compose import NO_PARTS
from latentdiff.config.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs"
ROOT = """\
# A root.
defaults:
  - _self_

seed: 0
steps: 4                   # how many; 0:
                           # none
# What follows is about sizes.
size:
  width: 3                 # pixels
  height: null
name: "a # b"
"""


def test_keys_and_comments_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "root.yaml").write_text(ROOT)
    assert root_keys(tmp_path / "root.yaml") == [
        Key("seed", "0", ""),
        Key("steps", "4", "how many; 0: none"),
        Key("size.width", "3", "pixels"),
        Key("size.height", "null", ""),
        Key("name", '"a # b"', ""),
    ]
    assert sentence(tmp_path / "root.yaml") == "A root"


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_s_help_names_its_choices_and_keys(program: str) -> None:
    text = program_help(program, CONFIGS)
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []
    for group in groups(CONFIGS, program):
        assert re.search(rf"^  {group} ", text, re.MULTILINE) or group == "experiment"
        for option in options(CONFIGS, group):
            assert re.search(rf"(^|\s){re.escape(option)}(\s|$)", text), option
    for key in root_keys(CONFIGS / f"{program}.yaml"):
        assert re.search(rf"^  {re.escape(key.name)}[=:]", text, re.MULTILINE), key


def test_every_experiment_has_a_line_of_its_own() -> None:
    lines = program_help("train", CONFIGS).splitlines()
    for name in options(CONFIGS, "experiment"):
        line = next(line for line in lines if line.startswith(f"  {name} "))
        assert sentence(CONFIGS / "experiment" / f"{name}.yaml").startswith(
            line.split(maxsplit=1)[1].removesuffix(" ...")
        )
    assert set(groups(CONFIGS, "sample")) < set(groups(CONFIGS, "evaluate")) < set(groups(CONFIGS, "train"))


def test_every_option_says_what_it_is() -> None:
    folders = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    assert set(GROUPS) | {*NO_PARTS} == folders
    for group in set(GROUPS) - {"hydra", "debug"}:
        for option in options(CONFIGS, group):
            assert sentence(CONFIGS / group / f"{option}.yaml"), f"{group}/{option}: its first line is no comment"
            assert f"  {option}" in group_help(group, CONFIGS)
    with pytest.raises(InputError, match="no group 'samplers'; did you mean sampler"):
        group_help("samplers", CONFIGS)


def test_the_documented_table_of_groups_is_this_one() -> None:
    text = (REPOSITORY / "docs" / "configs.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \| [x |]+$", text, re.MULTILINE))
    assert rows == GROUPS
    chosen = [groups(CONFIGS, program) for program in PROGRAMS]
    for group, marks in re.findall(r"^\| `(\w+)` \| .*? \| ([x |]+)\|$", text, re.MULTILINE):
        named = [mark.strip() == "x" for mark in marks.split("|")[:3]]
        assert named == [group == "hydra" or group in names for names in chosen], group


def test_help_is_read_to_its_end_or_not_and_needs_no_torch() -> None:
    code = "import sys; sys.argv = ['train.py', '--help']; from latentdiff.app import launch; " + (
        "code = launch.run(None, 'train'); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(latentdiff.__file__).parents[1])}
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, env=environment, cwd=REPOSITORY
    )
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, "")

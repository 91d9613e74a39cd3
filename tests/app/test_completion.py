"""The script for the shell is read by a shell, and completes."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from latentdiff.app import cli
from latentdiff.app.completion import script
from latentdiff.config.errors import InputError


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("words", "completed"), [(["doct"], "doctor"), (["doctor", "--st"], "--steps")])
def test_bash_completes_verbs_and_options(words: list[str], completed: str) -> None:
    pytest.importorskip("shtab")
    ask = (
        f"COMP_WORDS=(latentdiff {' '.join(words)}); COMP_CWORD={len(words)}; _shtab_latentdiff; echo ${{COMPREPLY[@]}}"
    )
    answer = subprocess.run(
        ["bash", "-c", f"{script(cli.commands(), 'bash')}\n{ask}"], capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == [completed]


def test_without_shtab_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(InputError, match=r"pip install 'latentdiff\[completion\]'"):
        script(cli.commands(), "bash")

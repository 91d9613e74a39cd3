"""How the verbs of ``latentdiff`` hand over."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from latentdiff.app import cli, post_hoc_ema
from latentdiff.config.errors import InputError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list:
    """What reaches ``post_hoc_ema.reconstruct``; a length of 2 or more is refused by it."""
    seen: list = []

    def reconstruct(run_dir: str, dest: str, *, length: float) -> post_hoc_ema.Reconstruction:
        if length >= 2:
            raise InputError("length: too long")
        seen.append((run_dir, dest, length))
        return post_hoc_ema.Reconstruction(Path(dest), length, batches_seen=9, snapshots=4, profile_error=0.015)

    monkeypatch.setattr(post_hoc_ema, "reconstruct", reconstruct)
    return seen


def test_ema_reconstructs_the_average_of_a_length(calls: list, capsys) -> None:
    assert cli.main(["ema", "run", "new", "--length", "0.05"]) == 0
    assert calls == [("run", "new", 0.05)]
    said = capsys.readouterr().out
    assert "checkpoint written: new" in said
    assert "length 0.05 from 4 snapshots, profile off by 1.50%" in said


def test_what_is_at_fault_in_the_input_is_told_with_exit_code_2(calls: list, capsys) -> None:
    assert cli.main(["ema", "run", "new", "--length", "2"]) == 2
    assert "error: length: too long" in capsys.readouterr().err
    for arguments in (["ema", "run", "new"], ["ema", "run", "new", "--length", "long"], ["nothing"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
    assert calls == []


@pytest.mark.parametrize(
    ("word", "said"),
    [("doctr", "did you mean doctor"), ("sampel", r"did you mean sample\.py"), ("xyz", "no verb 'xyz'; --help")],
)
def test_the_nearest_verb_is_told(capsys, word: str, said: str) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([word])
    assert stop.value.code == 2
    assert re.search(said, capsys.readouterr().err)


def test_without_a_verb_the_help_is_shown(capsys) -> None:
    assert cli.main([]) == 2
    assert "verbs:" in capsys.readouterr().err

"""Arguments that are no settings: options that do not exist, and settings on either side of options."""

from __future__ import annotations

import sys

import pytest

from latentdiff.app.command_line import is_multirun, read_argv
from latentdiff.config.errors import InputError


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch):
    def read(*argv: str):
        monkeypatch.setattr(sys, "argv", ["train.py", *argv])
        return read_argv()

    return read


def test_settings_may_stand_on_either_side_of_an_option(read) -> None:
    args = read("experiment=x", "-m", "run_dir=/a=b", "--config-dir", "mine", "seed=1,2")
    assert args.overrides == ["experiment=x", "run_dir='/a=b'", "seed=1,2"]
    assert is_multirun(args)
    assert args.config_dir == "mine"
    assert sys.argv[1:] == ["-m", "--config-dir", "mine", "experiment=x", "run_dir='/a=b'", "seed=1,2"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--experiment", "ldm"], r"no option --experiment; .* without dashes, experiment=VALUE"),
        (["seed=1", "--sampler=ddim"], r"no option --sampler; .* without dashes, sampler=ddim"),
        (["--cfg", "nothing"], "invalid choice: 'nothing'.*; see --help"),
        (["--config-dir"], "expected one argument; see --help"),
    ],
)
def test_an_option_that_is_none_is_refused(read, argv: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(*argv)

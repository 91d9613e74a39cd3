"""--from RUN_DIR: which command line it stands for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import latentdiff
from latentdiff.app.run.rerun import expanded
from latentdiff.config.errors import InputError
from latentdiff.evaluation import card

SAVED = [
    "experiment=ldm_txt2img",
    "run_dir='/a=b'",
    "optim.lr=1e-3",
    "+callbacks.samples.count=4",
    "~callbacks.watchdog",
]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    now = card.source_revision(Path(latentdiff.__file__).parent)
    made = {"program": "train", "searched": ["file:///mine"], "revision": now}
    (tmp_path / "overrides.yaml").write_text(yaml.safe_dump(SAVED))
    (tmp_path / "environment.json").write_text(json.dumps(made))
    return tmp_path


def test_settings_of_the_run_are_taken_and_those_given_replace_them(run_dir: Path) -> None:
    again = expanded([f"--from={run_dir}", "optim.lr=2e-3", "callbacks.samples.count=2", "-m"], "train")
    assert again == [
        "hydra.searchpath=['file:///mine']",
        "experiment=ldm_txt2img",
        "~callbacks.watchdog",
        "optim.lr=2e-3",
        "callbacks.samples.count=2",
        "-m",
    ]
    here = expanded(["--from", str(run_dir), "--config-dir", "here"], "train")
    assert here == [SAVED[0], *SAVED[2:], "--config-dir", "here"]
    assert expanded(["seed=1"], "train") == ["seed=1"]


def test_what_no_run_of_the_program_has_made_is_refused(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"was made by train\.py"):
        expanded(["--from", str(run_dir)], "sample")
    with pytest.raises(InputError, match=r"'/nowhere' holds no readable overrides\.yaml"):
        expanded(["--from", "/nowhere"], "train")
    for argv in (["--from"], ["--from", str(run_dir), "--from", str(run_dir)]):
        with pytest.raises(InputError, match="expected one run directory"):
            expanded(argv, "train")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("environment.json", "{}"),
        ("environment.json", "[]"),
        ("environment.json", '{"program": "train", "revision": null, "searched": 3}'),
        ("overrides.yaml", "a: b"),
        ("overrides.yaml", "[1]"),
    ],
)
def test_files_of_something_else_are_refused(run_dir: Path, file: str, content: str) -> None:
    (run_dir / file).write_text(content)
    with pytest.raises(InputError, match="holds no readable"):
        expanded(["--from", str(run_dir)], "train")


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ("a" * 40, "a" * 40, ""),
        ("a" * 40, "b" * 40, "of commit aaaaaaaaaa, this is bbbbbbbbbb"),
        ("a" * 40 + "+changes", "a" * 40, "of commit aaaaaaaaaa+changes, this is aaaaaaaaaa;"),
        ("a" * 40 + "+changes", "a" * 40 + "+changes", "changes that are in no commit"),
        ("a" * 40, None, "this is no repository"),
    ],
)
def test_other_code_is_told(run_dir: Path, monkeypatch, capsys, then: str, now: str | None, said: str) -> None:
    made = json.loads((run_dir / "environment.json").read_text())
    (run_dir / "environment.json").write_text(json.dumps({**made, "revision": then}))
    monkeypatch.setattr(card, "source_revision", lambda package: now)
    expanded(["--from", str(run_dir)], "train")
    err = capsys.readouterr().err
    assert said in err
    assert bool(err) is bool(said)

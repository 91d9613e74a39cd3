"""``latentdiff doctor``: what it finds of this machine and of tiny trainings, and its exit codes."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from latentdiff.app import cli
from latentdiff.app.doctor import machine as doctor_machine
from latentdiff.app.doctor import run as doctor_run
from latentdiff.app.doctor import trial
from latentdiff.app.doctor.findings import NOTE, OK, PROBLEM, WIDTH, Finding
from latentdiff.app.doctor.run import in_hours
from latentdiff.app.run.summary import held_back, in_short

REPOSITORY = Path(__file__).resolve().parents[3]
TINY = (
    "experiment=ae_kl",
    "debug=tiny_autoencoder",
    "trainer=cpu",
    "trainer.precision=32-true",
    "global_batch=4",
    "max_batches=100",
)


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """``doctor(*arguments) -> exit code, findings by subject, errors``; nothing is left in the folder it runs in."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, dict[str, tuple[str, str]], str]:
        code = cli.main(["doctor", *arguments])
        out, err = capsys.readouterr()
        assert list(tmp_path.iterdir()) == []
        lines = re.sub(r"\n {23}", " ", out).splitlines()
        found = [re.fullmatch(r"(\w+) +(\S.{14}) *(.*)", line) for line in lines if line]
        assert all(len(line) <= WIDTH or "/" in line for line in out.splitlines())  # a path is not broken
        return code, {match[2].strip(): (match[1], match[3]) for match in found if match}, err

    return run


def test_findings_fit_the_terminal() -> None:
    assert str(Finding(NOTE, "weights", "word " * 20)).splitlines() == [
        "note    weights        " + " ".join(["word"] * 11),
        " " * 23 + " ".join(["word"] * 9),
    ]


def test_this_machine(doctor) -> None:
    code, found, _ = doctor()
    assert code == 0
    assert found["torch"] == (OK, found["torch"][1])
    assert torch.__version__ in found["torch"][1]
    assert {"latentdiff", "CPU", "disk", "extras", "weights"} <= set(found)
    assert ("GPU" in found) is not torch.cuda.is_available()


def test_extras_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    table = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    declared = set(re.findall(r"^(\w+) = \[", table, re.MULTILINE))
    assert declared - {"dev", "docs", "browser"} == set(doctor_machine.EXTRAS)
    monkeypatch.setattr(doctor_machine, "EXTRAS", {"here": (("json",), "a"), "away": (("no_such.part",), "b")})
    assert [str(each) for each in doctor_machine._extras()] == [
        "ok      extras         here",
        "note    extra away     b: pip install 'latentdiff[away]'",
    ]


def test_a_training_is_tried(doctor) -> None:
    code, found, err = doctor(*TINY, "--steps", "3")
    assert (code, err) == (0, "")
    assert found["data"][0] == NOTE  # it would be drawn
    rate = float(re.search(r"([\d.]+) images/s", found["time"][1])[1])
    seconds = float(re.match(r"([\d.e-]+) s a batch on cpu, 32-true", found["time"][1])[1])
    assert rate == pytest.approx(4 / seconds, rel=0.02)
    assert f"100 batches take {in_hours(100 * seconds)}" in found["time"][1]
    assert "Timed on 2 real batches" in found["time"][1]
    assert "free for 'outputs'" in found["checkpoints"][1]


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (["experiment=ae_kll"], 2, "did you mean ae_kl"),
        ([*TINY, "data.size=33"], 2, "not divisible"),
        ([*TINY, "--steps", "1"], 2, "--steps: expected 0 or at least 2"),
        ([*TINY, "data=webdataset", "data.train=/nowhere"], 1, "1 problem, see above"),
    ],
)
def test_what_would_stop_a_run_has_an_exit_code(doctor, settings: list[str], code: int, message: str) -> None:
    answered, _, err = doctor(*settings)
    assert answered == code
    assert message in err


def test_too_little_memory_is_a_problem(doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_run, "available_memory", lambda: 1000)
    code, found, _ = doctor(*TINY)
    assert code == 1
    assert found["memory"][0] == PROBLEM
    assert "1000 B free; nothing was tried" in found["memory"][1]


def test_a_trial_ends_before_the_machine_s_memory_does(doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(module: object, batch: object, number: int) -> None:
        torch.ones(2**30)

    monkeypatch.setattr(trial, "available_memory", lambda: 2**30)
    monkeypatch.setattr("latentdiff.training.autoencoder_module.AutoencoderModule.training_step", greedy)
    code, found, _ = doctor(*TINY, "task.micro_batch=2", "data.workers=0")
    assert code == 1
    assert found["memory"] == (
        PROBLEM,
        "there is too little for 2 images at a time; task.micro_batch=1 trains the same with less",
    )
    assert torch.ones(2**20).sum() == 2**20  # what was limited is not any more


def test_a_gpu_that_is_not_there_is_a_problem(doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, found, _ = doctor(*TINY[:2], "trainer=gpu")
    assert code == 1
    assert found["device"][0] == PROBLEM


@pytest.mark.parametrize(
    ("val", "training", "validation", "said"),
    [
        (None, 24, 16, "16 of 40 samples are held back for validation; data.val names others"),
        (None, 84, 16, ""),
        ("val.tar", 4, 16, ""),
    ],
)
def test_much_that_is_held_back_is_told(val: str | None, training: int, validation: int, said: str) -> None:
    data = SimpleNamespace(train_set=range(training), val_set=range(validation), source=SimpleNamespace(val=val))
    assert (held_back(data) or "").startswith(said)
    assert bool(held_back(data)) is bool(said)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "1 s"), (65, "1 min 5 s"), (7200, "2 h"), (90_000, "1 d 1 h"), (86_461, "1 d")]
)
def test_times_in_words(seconds: float, said: str) -> None:
    assert in_hours(seconds) == said


@pytest.mark.parametrize(("count", "said"), [(7, "7"), (12_345, "12.3 k"), (859_520_964, "860 M"), (2.567e9, "2.57 B")])
def test_counts_in_short(count: float, said: str) -> None:
    assert in_short(count) == said

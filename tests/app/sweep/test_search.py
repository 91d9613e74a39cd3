"""Searches over a stub in place of train.py, whose objective is known: what is pruned, fails, goes on, and is best."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from latentdiff.app.sweep import record as record
from latentdiff.app.sweep import search as sweep_search
from latentdiff.app.sweep.parameter import Choice, Range, Whole
from latentdiff.app.sweep.report import make_report
from latentdiff.app.sweep.search import search
from latentdiff.app.sweep.space import Pruner, Space
from latentdiff.app.sweep.study import JOURNAL, opened
from latentdiff.app.sweep.trial import last_error
from latentdiff.config.errors import InputError, RunError

STUB = """
import json, os, signal, sys, time

told = dict(word.split("=", 1) for word in sys.argv[1:])
folder, steps, pause = told["run_dir"], int(told["steps"]), float(told["pause"])
open(os.path.join(folder, "starts"), "a").write(told["resume"] + " ")
if told.get("kind") == "bad":
    print("error: kind is bad", file=sys.stderr)
    sys.exit(2)
if "late" in told and open(os.path.join(folder, "starts")).read() == told["late"]:
    time.sleep(60)
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(143))
signal.signal(signal.SIGINT, lambda *_: stop.append(130))
path = os.path.join(folder, "metrics.jsonl")
done = len(open(path).readlines()) if os.path.exists(path) else 0
for step in range(done + 1, steps + 1):
    value = float(told["x"]) ** 2 + 1 / step
    with open(path, "a") as file:
        file.write(json.dumps({"batches_seen": step, "images_seen": 10 * step, "val/loss": value}) + chr(10))
    end = time.monotonic() + pause
    while time.monotonic() < end and not stop:
        time.sleep(0.005)
    if stop:
        sys.exit(stop[0])
"""

SPACE = Space(
    overrides=["steps=4"],
    trial_overrides=["pause=0"],
    parameters={"x": Whole(-3, 3, 1)},
    objective="val/loss",
    maximize=False,
    trials=7,
    sampler="grid",
    seed=0,
    pruner=None,
    images=40,
    grouped=False,
    outputs=Path("outputs"),
    name="stub",
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``run(space, jobs=1) -> exit code``, in the folder ``sweep``."""
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setattr(sweep_search, "EVERY", 0.01)

    def call(space: Space, jobs: int = 1) -> int:
        program = [sys.executable, "-S", "-E", str(tmp_path / "stub.py")]
        return search(space, tmp_path / "sweep", program=program, environments=[{}] * jobs, command="latentdiff sweep")

    return call


def test_a_grid_goes_through_all_values_and_finds_the_best(run, tmp_path: Path, capsys) -> None:
    assert run(SPACE, jobs=2) == 0
    sweep = record.read(tmp_path / "sweep")
    assert sorted(int(job.settings["x"]) for job in sweep.jobs.values()) == list(range(-3, 4))
    assert {job.state for job in sweep.jobs.values()} == {"done"}
    report = make_report(tmp_path / "sweep")
    assert report.best.job.settings == {"x": "0"}
    assert report.best.curve == [(10, 1.0), (20, 0.5), (30, pytest.approx(1 / 3)), (40, 0.25)]
    out = capsys.readouterr().out
    assert "python train.py steps=4 x=0" in out
    assert "pause" not in out.partition("best: job")[2]
    assert {"report.csv", "report.png", "report.html"} <= {path.name for path in (tmp_path / "sweep").iterdir()}
    starts = (tmp_path / "sweep" / "0" / "starts").read_text()
    assert run(SPACE) == 0
    assert (tmp_path / "sweep" / "0" / "starts").read_text() == starts


def test_more_is_better_where_it_is_told(run, tmp_path: Path) -> None:
    assert run(replace(SPACE, maximize=True)) == 0
    assert make_report(tmp_path / "sweep").best.job.settings["x"] in ("-3", "3")


def test_trials_that_fall_behind_are_stopped_and_told_apart_from_failed_ones(run, tmp_path: Path, capsys) -> None:
    space = replace(
        SPACE,
        parameters={"x": Choice(("0", "1", "5")), "kind": Choice(("good", "bad"))},
        trial_overrides=["pause=0.2"],
        pruner=Pruner("median", 20, 1),
    )
    assert run(space) == 0
    jobs = record.read(tmp_path / "sweep").jobs.values()
    by_settings = {tuple(job.settings.values()): job for job in jobs}
    assert {by_settings[x, "bad"].state for x in "015"} == {"failed"}
    assert by_settings["0", "bad"].reason == "exit code 2: kind is bad"
    assert by_settings["0", "good"].state == "done"
    pruned = by_settings["5", "good"]
    assert pruned.state == "pruned"
    results = {result.job.number: result for result in make_report(tmp_path / "sweep").results}
    assert 20 <= results[pruned.number].images < 40
    assert "exit code 2: kind is bad" in capsys.readouterr().out


def test_a_search_that_was_killed_goes_on(run, tmp_path: Path, capsys) -> None:
    """As SIGKILL leaves it: a trial that nobody sees to, its run half way, and half a line in the journal."""
    folder = tmp_path / "sweep"
    space = replace(SPACE, parameters={"x": Range(0.01, 10.0, log=True)}, sampler="random", trials=3)
    with opened(folder, space) as study:
        trial = study.ask({"x": space.parameters["x"].distribution()})
    (folder / "0").mkdir()
    (folder / "0" / "metrics.jsonl").write_text('{"batches_seen": 1, "images_seen": 10, "val/loss": 7.0}\n')
    with (folder / JOURNAL).open("a") as journal:
        journal.write('{"op_code": 6, "wor')
    assert run(space) == 0
    assert "trial 0 goes on" in capsys.readouterr().out
    jobs = record.read(folder).jobs
    assert {number: job.state for number, job in jobs.items()} == dict.fromkeys(range(3), "done")
    assert float(jobs[0].settings["x"]) == pytest.approx(trial.params["x"], rel=1e-5)
    assert make_report(folder).results[0].curve[0] == (10, 7.0)
    assert len({job.settings["x"] for job in jobs.values()}) == 3
    with pytest.raises(InputError, match="holds another search: its seed is 0, now it is 1"):
        run(replace(space, seed=1))


def test_values_that_a_killed_process_was_drawing_are_drawn_again(run, tmp_path: Path) -> None:
    space = replace(SPACE, parameters={"x": Whole(0, 1, 1)}, trials=2)
    with opened(tmp_path / "sweep", space) as study:
        study.ask()
    assert run(space) == 0
    jobs = record.read(tmp_path / "sweep").jobs
    assert {job.settings["x"]: job.state for job in jobs.values()} == {"0": "done", "1": "done"}


def signalled_after(path: Path, number: int) -> None:
    while not path.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), number)


def test_a_signal_stops_the_trials_and_the_same_command_goes_on(run, tmp_path: Path, capsys) -> None:
    space = replace(SPACE, parameters={"x": Whole(0, 1, 1)}, trials=2, trial_overrides=["pause=0.3"])
    lines = tmp_path / "sweep" / "1" / "metrics.jsonl"
    thread = threading.Thread(target=signalled_after, args=(lines, signal.SIGINT))
    thread.start()
    assert run(space, jobs=2) == 130
    thread.join()
    sweep = record.read(tmp_path / "sweep")
    assert {job.state for job in sweep.jobs.values()} == {"stopped"}
    assert "the same command goes on" in capsys.readouterr().out
    before = signal.getsignal(signal.SIGINT)
    assert run(space, jobs=2) == 0
    assert signal.getsignal(signal.SIGINT) is before
    assert {job.state for job in record.read(tmp_path / "sweep").jobs.values()} == {"done"}
    assert [result.images for result in make_report(tmp_path / "sweep").results] == [40, 40]
    assert (tmp_path / "sweep" / "1" / "starts").read_text() == "auto auto "


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_trial_that_has_no_handlers_yet_is_stopped_too(run, tmp_path: Path, number: int) -> None:
    space = replace(SPACE, trials=1, trial_overrides=["pause=0", "late=auto "])
    thread = threading.Thread(target=signalled_after, args=(tmp_path / "sweep" / "0" / "starts", number))
    thread.start()
    assert run(space) == 128 + number
    thread.join()
    assert {n: job.state for n, job in record.read(tmp_path / "sweep").jobs.items()} == {0: "stopped"}
    assert run(space) == 0
    assert {job.state for job in record.read(tmp_path / "sweep").jobs.values()} == {"done"}


def test_no_trial_begins_after_a_signal(run, tmp_path: Path, monkeypatch) -> None:
    """It comes when the trial has its values, and no process."""
    recorded = sweep_search.Search._recorded

    def interrupted(self, trial):
        os.kill(os.getpid(), signal.SIGINT)
        return recorded(self, trial)

    monkeypatch.setattr(sweep_search.Search, "_recorded", interrupted)
    assert run(SPACE) == 130
    assert {n: job.state for n, job in record.read(tmp_path / "sweep").jobs.items()} == {0: "stopped"}
    assert not (tmp_path / "sweep" / "0" / "starts").exists()


def test_what_nohup_keeps_away_stays_away(run, monkeypatch) -> None:
    recorded = sweep_search.Search._recorded

    def hung_up(self, trial):
        os.kill(os.getpid(), signal.SIGHUP)
        return recorded(self, trial)

    monkeypatch.setattr(sweep_search.Search, "_recorded", hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(replace(SPACE, trials=1)) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_trial_that_is_just_starting_gets_the_signal(run, tmp_path: Path, monkeypatch) -> None:
    started = subprocess.Popen

    def interrupted(*args, **kwargs):
        process = started(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    assert run(replace(SPACE, trial_overrides=["pause=60"])) == 143
    assert record.read(tmp_path / "sweep").jobs[0].state == "stopped"


def test_the_record_knows_what_the_journal_calls_ended(run, tmp_path: Path, monkeypatch) -> None:
    """Killed between the two, a trial would never be looked at again."""
    tell, known = optuna.Study.tell, []

    def looked_at(self, number, *args, **kwargs):
        known.append(record.read(tmp_path / "sweep").jobs[number].state)
        return tell(self, number, *args, **kwargs)

    monkeypatch.setattr(optuna.Study, "tell", looked_at)
    assert run(replace(SPACE, trials=2)) == 0
    assert known == ["done", "done"]


def test_a_group_in_wandb_is_given_to_trials_alone(run, tmp_path: Path, monkeypatch) -> None:
    lines: list[list[str]] = []
    made = sweep_search.TrialProcess
    monkeypatch.setattr(sweep_search, "TrialProcess", lambda **given: lines.append(given["command"]) or made(**given))
    assert run(replace(SPACE, trials=1, grouped=True)) == 0
    assert "logger.wandb.group='sweep'" in lines[0]
    assert record.read(tmp_path / "sweep").jobs[0].overrides == ["steps=4", "x=-3"]


def test_a_grid_that_is_not_gone_through_says_so(run, capsys) -> None:
    assert run(replace(SPACE, trials=2)) == 0
    assert "search of 2 of 7 combinations: " in capsys.readouterr().out


def test_the_end_of_a_killed_trial_is_its_signal(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("batch 3: loss 1.0, 5 images/s\n")
    assert last_error(tmp_path, -9) == "killed by SIGKILL"
    assert last_error(tmp_path, 1) == "exit code 1: batch 3: loss 1.0, 5 images/s"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--dir: '.*' cannot be written"), opened(tmp_path / "file" / "s", SPACE):
        pass


def test_two_processes_share_the_trials(run, tmp_path: Path) -> None:
    """The second is in this process: each trial is begun once, and each process reports."""
    script = f"""
import sys
from pathlib import Path
sys.path[:0] = {[path for path in sys.path if path]!r}
sys.argv = ["latentdiff"]
import importlib.util
spec = importlib.util.spec_from_file_location("shared", {__file__!r})
test = importlib.util.module_from_spec(spec)
spec.loader.exec_module(test)
test.sweep_search.EVERY = 0.01
program = [sys.executable, "-S", "-E", {str(tmp_path / "stub.py")!r}]
space = test.replace(test.SPACE, trial_overrides=["pause=0.1"])
sys.exit(test.search(space, Path({str(tmp_path / "sweep")!r}), program=program, environments=[{{}}], command="x"))
"""
    other = subprocess.Popen([sys.executable, "-c", script])
    assert run(replace(SPACE, trial_overrides=["pause=0.1"])) == 0
    assert other.wait() == 0
    sweep = record.read(tmp_path / "sweep")
    assert sorted(int(job.settings["x"]) for job in sweep.jobs.values()) == list(range(-3, 4))
    assert all((tmp_path / "sweep" / str(n) / "starts").read_text() == "auto " for n in range(7))


def test_a_search_without_hope_ends(run, tmp_path: Path) -> None:
    space = replace(SPACE, parameters={"x": Whole(0, 9, 1), "kind": Choice(("bad",))}, trials=10)
    with pytest.raises(RunError, match="the first 3 trials have failed"):
        run(space)


def test_an_objective_that_is_not_measured_ends_it_at_the_first_validation(run, tmp_path: Path) -> None:
    space = replace(SPACE, objective="val/los", trial_overrides=["pause=5"])
    with pytest.raises(InputError, match="did you mean val/loss"):
        run(space)
    assert record.read(tmp_path / "sweep").jobs[0].state == "stopped"
    assert (tmp_path / "sweep" / "0" / "metrics.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize("name", ["hyperband", "successive_halving", "median"])
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_samplers_and_pruners_of_optuna_take_our_trials(run, tmp_path: Path, name: str, sampler: str) -> None:
    space = replace(
        SPACE,
        parameters={"x": Range(0.01, 10.0, log=True), "kind": Choice(("a", "b")), "n": Whole(1, 9, 4)},
        sampler=sampler,
        trials=4,
        pruner=Pruner(name, 10, 2),
    )
    assert run(space, jobs=4) == 0
    settings = [job.settings for job in record.read(tmp_path / "sweep").jobs.values()]
    assert len({each["x"] for each in settings}) == 4
    assert {each["n"] for each in settings} <= {"1", "5", "9"}

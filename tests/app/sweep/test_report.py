"""Reports of sweeps written by hand: tables, files, and what a running or killed job looks like."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from latentdiff.app.cli import main
from latentdiff.app.run import run_lock
from latentdiff.app.sweep import record as record
from latentdiff.app.sweep.record import Job, Sweep
from latentdiff.app.sweep.report import as_typed, make_report, short_names
from latentdiff.config.errors import InputError


def job(number: int, state: str, lr: str, reason: str = "") -> Job:
    return Job(
        number, {"optim.lr": lr, "diffusion": "edm"}, [f"optim.lr={lr}", "diffusion=edm"], str(number), state, reason
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    jobs = [job(0, "done", "0.001"), job(1, "done", "0.01"), job(2, "pruned", "0.1"), job(3, "failed", "1.0", "NaN")]
    jobs += [job(4, "running", "2.0"), job(5, "planned", "3.0")]
    sweep = Sweep(
        "python train.py -m x", ["optim.lr", "diffusion"], "val/loss_v", False, {each.number: each for each in jobs}
    )
    for number, values in {0: [3.0, 2.0], 1: [4.0, 1.0], 2: [0.5], 4: [0.1]}.items():
        (tmp_path / str(number)).mkdir()
        lines = [
            {"batches_seen": i, "images_seen": 10 * i, "val/loss_v": value, "val/psnr": 20 * value}
            for i, value in enumerate(values, start=1)
        ]
        lines.append({"batches_seen": 9, "images_seen": 90, "val/loss_v": None})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / str(number) / "metrics.jsonl").write_text(text + '{"images_seen": 99, "val/lo')
    record.write(tmp_path, sweep)
    return tmp_path


def test_the_best_is_among_those_that_are_done(folder: Path, capsys) -> None:
    report = make_report(folder)
    assert report.best.job.number == 1
    assert [result.curve for result in report.results[:2]] == [[(10, 3), (20, 2)], [(10, 4), (20, 1)]]
    assert main(["sweep", "report", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "2 done, 1 pruned, 1 planned, 1 stopped, 1 failed" in out
    assert "1.0000 *" in out
    assert "job 3 failed: NaN" in out
    assert "python train.py optim.lr=0.01 diffusion=edm" in out
    assert max(map(len, out.splitlines()[:12])) <= 80


def test_the_files(folder: Path) -> None:
    make_report(folder)
    with (folder / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done", "done", "pruned", "failed", "stopped", "planned"]
    assert (rows[1]["optim.lr"], rows[1]["val/loss_v"], rows[3]["val/loss_v"]) == ("0.01", "1.0", "")
    assert Image.open(folder / "report.png").size[0] > 1000
    page = (folder / "report.html").read_text()
    assert page.index("job 4") < page.index("job 2") < page.index("job 1") < page.index("job 0") < page.index("job 3")
    assert "data:image/png;base64" in page
    before = (folder / "report.png").read_bytes()
    make_report(folder)
    assert (folder / "report.png").read_bytes() == before


def test_another_objective(folder: Path, capsys) -> None:
    assert make_report(folder, objective="val/psnr").best.job.number == 0
    assert make_report(folder, objective="val/psnr", maximize=False).best.job.number == 1
    assert main(["sweep", "report", "--objective", "val/pnsr", str(folder)]) == 2
    assert "did you mean val/psnr" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_many_jobs_of_which_none_is_done(folder: Path) -> None:
    sweep = record.read(folder)
    for number in range(11):
        sweep = sweep.with_job(job(number, "stopped", f"0.{number}1"))
        (folder / str(number)).mkdir(exist_ok=True)
        (folder / str(number) / "metrics.jsonl").write_text('{"images_seen": 10, "val/loss_v": 1.0}\n')
    record.write(folder, sweep)
    assert make_report(folder).best is None


def test_a_job_whose_run_is_locked_runs(folder: Path) -> None:
    with run_lock.alone_in(folder / "4"):
        assert make_report(folder).sweep.jobs[4].state == "running"
    claimed = record.claim(folder, 4)
    assert record.claim(folder, 4) is None
    assert make_report(folder).sweep.jobs[4].state == "running"
    claimed.close()
    assert make_report(folder).sweep.jobs[4].state == "stopped"


def test_a_process_that_outlives_the_one_that_forked_it_claims_nothing(folder: Path) -> None:
    """As DataLoader workers do for a while after a kill."""
    claimed = record.claim(folder, 4)
    (heard, told), (waits, ends) = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        os.write(told, b".")
        os.read(waits, 1)
        os._exit(0)
    os.read(heard, 1)
    claimed.close()
    again = record.claim(folder, 4)
    os.write(ends, b".")
    os.waitpid(child, 0)
    assert again is not None
    again.close()


def test_records_that_are_none(tmp_path: Path) -> None:
    for text, message in {"{": "cannot be read", '{"format": 0}': "another version", "[]": "cannot be read"}.items():
        (tmp_path / record.NAME).write_text(text)
        with pytest.raises(InputError, match=message):
            record.read(tmp_path)


def test_names_are_short_where_they_differ() -> None:
    assert short_names(["optim.lr", "seed"]) == {"optim.lr": "lr", "seed": "seed"}
    assert short_names(["a.lr", "b.lr"]) == {"a.lr": "a.lr", "b.lr": "b.lr"}
    assert as_typed(["python", "run_dir='a/b'", "prompt='a b'"]) == """python run_dir=a/b 'prompt='"'"'a b'"'"''"""

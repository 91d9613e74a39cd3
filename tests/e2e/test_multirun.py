"""Multiruns and searches with the real train.py: to the end, gone on with, beside each other, and killed."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentdiff.app.sweep import record as record
from latentdiff.app.sweep.search import search
from latentdiff.app.sweep.space import read_space

REPOSITORY = Path(__file__).resolve().parents[2]
QUIET = ("callbacks.samples=null", "callbacks.checkpoints.every=2")
SEARCH = """
overrides: {overrides}
trial_overrides: [max_batches={batches}, validate_every=2, callbacks.samples=null, callbacks.checkpoints.every=2]
space:
  optim.lr: {{log: [1.0e-4, 1.0]}}
  diffusion: {{choice: [rectified_flow, cosine_v]}}
trials: {trials}
pruner: {{successive_halving: {{min_images: 16, reduction: 2}}}}
"""


def states(folder: Path) -> list[str]:
    return [job.state for job in record.read(folder).jobs.values()]


def test_a_grid_of_trainings_ends_with_a_report_and_goes_on(programs, autoencoder: Path, tmp_path: Path) -> None:
    line = [*programs.stage_two, *QUIET, f"first_stage.checkpoint={autoencoder}", f"run_dir={tmp_path / 's'}"]
    grid = ["optim.lr=1e-4,3e-3", "diffusion=rectified_flow,cosine_v", "max_batches=2"]
    outcome = programs.done("train", "-m", *line, *grid)
    assert "4 done" in outcome.out
    assert states(tmp_path / "s") == ["done"] * 4
    with (tmp_path / "s" / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [json.loads((tmp_path / "s" / str(n) / "metrics.jsonl").read_text().splitlines()[-1]) for n in range(4)]
    assert [float(row["val/loss_v"]) for row in rows] == [line["val/loss_v"] for line in losses]
    assert len({row["val/loss_v"] for row in rows}) == 4
    again = programs.done("train", "-m", *line, "optim.lr=choice(3e-3)", "diffusion=choice(cosine_v)", "max_batches=2")
    assert "job 3 of s" in again.out
    assert "already at 2 of 2 batches: nothing to do" in again.out
    assert states(tmp_path / "s") == ["done"] * 4


@pytest.mark.slow
def test_a_search_trains_with_the_program(programs, autoencoder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    path = written_space(programs, autoencoder, tmp_path, trials=1, batches=3)
    space = read_space(path, REPOSITORY / "configs", [], None)
    program = [sys.executable, str(REPOSITORY / "train.py")]
    with monkeypatch.context() as patched:
        patched.chdir(programs.home)
        for name, value in programs.environment.items():
            patched.setenv(name, value)
        code = search(space, tmp_path / "s", program=program, environments=[{}], command="latentdiff sweep")
    assert code == 0, (tmp_path / "s" / "0" / "log.txt").read_text()
    assert states(tmp_path / "s") == ["done"]
    assert "python train.py experiment=ldm_txt2img" in capsys.readouterr().out


def written_space(programs, autoencoder: Path, tmp_path: Path, *, trials: int, batches: int) -> Path:
    own = [line for line in programs.stage_two if not line.startswith(("max_batches", "validate_every"))]
    path = tmp_path / "space.yaml"
    overrides = json.dumps([*own, f"first_stage.checkpoint={autoencoder}"])
    path.write_text(SEARCH.format(overrides=overrides, trials=trials, batches=batches))
    return path


def start_search(programs, autoencoder: Path, tmp_path: Path, *, trials: int, jobs: int) -> subprocess.Popen[str]:
    path = written_space(programs, autoencoder, tmp_path, trials=trials, batches=12)
    code = "import sys; from latentdiff.app.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "sweep", str(path), "--dir", str(tmp_path / "s"), "--jobs", str(jobs)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=programs.home, env=programs.environment, **pipes)


@pytest.mark.faults
def test_a_search_of_eight_trials_is_killed_and_goes_on(programs, autoencoder: Path, tmp_path: Path) -> None:
    first = start_search(programs, autoencoder, tmp_path, trials=8, jobs=2)
    while not (tmp_path / "s" / "3" / "metrics.jsonl").exists():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = {n: job.state for n, job in record.read(tmp_path / "s").jobs.items() if job.state in ("done", "pruned")}
    ended = {n: (tmp_path / "s" / str(n) / "metrics.jsonl").read_bytes() for n in before}
    second = start_search(programs, autoencoder, tmp_path, trials=8, jobs=2)
    out, _ = second.communicate()
    assert second.returncode == 0, out
    assert "goes on" in out
    jobs = record.read(tmp_path / "s").jobs
    assert sorted(jobs) == list(range(8))
    assert {job.state for job in jobs.values()} <= {"done", "pruned"}
    assert "done" in states(tmp_path / "s")
    for number, content in ended.items():
        assert jobs[number].state == before[number]
        assert (tmp_path / "s" / str(number) / "metrics.jsonl").read_bytes() == content
    for number, job in jobs.items():
        lines = [json.loads(line) for line in (tmp_path / "s" / str(number) / "metrics.jsonl").read_text().splitlines()]
        seen = [line["batches_seen"] for line in lines if "val/loss_v" in line]
        assert seen == list(range(2, 2 * len(seen) + 1, 2))  # no gap and no overlap where it went on
        assert (seen[-1] == 12) >= (job.state == "done")
    assert (tmp_path / "s" / "report.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["trainer=ddp_cpu", "hydra/launcher=joblib", "hydra/launcher=submitit_local"])
def test_two_jobs_of_a_multirun(programs, tmp_path: Path, how: str) -> None:
    """With two processes each, or beside each other; the first stage is trained once, by one of them."""
    if how.startswith("hydra"):
        pytest.importorskip(f"hydra_plugins.hydra_{how.partition('=')[2].partition('_')[0]}_launcher")
    stages = tmp_path / "stages"
    line = [*programs.stage_two, *QUIET, "max_batches=2", f"paths.first_stages={stages}", f"run_dir={tmp_path / 's'}"]
    tiny = "first_stage.overrides=[debug=tiny_autoencoder]"
    process = programs.start("train", "-m", *line, tiny, how, "optim.lr=1e-3,2e-3")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert states(tmp_path / "s") == ["done", "done"]
    assert len(list(stages.iterdir())) == 1
    lines = [(tmp_path / "s" / str(n) / "metrics.jsonl").read_text().splitlines() for n in range(2)]
    assert [json.loads(own[-1])["batches_seen"] for own in lines] == [2, 2]
    assert "2 done" in out

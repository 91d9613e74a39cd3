"""Multiruns in this process, with jobs that do nothing: which are run, where, and what becomes of those that fail."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig

from latentdiff.app.sweep import grid_job, record
from latentdiff.app.sweep.report import make_report
from latentdiff.config.errors import InputError

ROOT = """
defaults: [train_schema, _self_, sampler: ddim, task: plain, hydra: plain]
experiment: plain
max_batches: 10
global_batch: 4
data: {train: null}
paths: {outputs: out}
logger: {wandb: {group: null}}
"""


def states(folder: str | Path) -> dict[int, str]:
    return {number: job.state for number, job in record.read(Path(folder)).jobs.items()}


def test_every_combination_has_a_folder_in_one_that_is_named_by_the_time(program, tmp_path: Path, capsys) -> None:
    seen: list[DictConfig] = []
    assert program(seen.append, "-m", "seed=1,2", "sampler=ddim,euler") == 0
    assert capsys.readouterr().out.startswith("checking 4 combinations\n")
    (folder,) = (tmp_path / "out" / "plain" / "multirun").iterdir()
    assert [(cfg.seed, cfg.sampler.steps) for cfg in seen] == [(1, 5), (1, 6), (2, 5), (2, 6)]
    assert [cfg.run_dir for cfg in seen] == [f"{folder.relative_to(tmp_path)}/{n}" for n in range(4)]
    assert {cfg.logger.wandb.group for cfg in seen} == {folder.name}
    sweep = record.read(folder)
    assert sweep.swept == ["seed", "sampler"]
    assert sweep.jobs[2].settings == {"seed": "2", "sampler": "ddim"}
    assert sweep.jobs[2].overrides == ["seed=2", "sampler=ddim"]
    assert states(folder) == dict.fromkeys(range(4), "done")


def test_a_group_that_is_given_stays(program) -> None:
    seen: list[DictConfig] = []
    assert program(seen.append, "-m", "seed=1,2", "logger.wandb.group=mine") == 0
    assert [cfg.logger.wandb.group for cfg in seen] == ["mine", "mine"]


def test_run_directories_may_be_named_by_the_settings(program, tmp_path: Path, capsys) -> None:
    seen: list[DictConfig] = []
    assert program(seen.append, "-m", "seed=1,2", "run_dir=runs/${seed}") == 0
    assert [cfg.run_dir for cfg in seen] == ["runs/1", "runs/2"]
    (folder,) = (tmp_path / "out" / "plain" / "multirun").iterdir()
    assert {cfg.logger.wandb.group for cfg in seen} == {folder.name}
    Path("runs/2").mkdir(parents=True)
    Path("runs/2/metrics.jsonl").write_text('{"images_seen": 10, "val/loss": 0.5}\n')
    assert [result.value for result in make_report(folder, objective="val/loss").results] == [None, 0.5]
    assert program(seen.append, "-m", "seed=1,2", "run_dir=runs/${max_batches}") == 2
    assert "several jobs would train in the same one" in capsys.readouterr().err
    assert len(seen) == 2


def test_faults_of_all_jobs_refuse_the_sweep(program, capsys) -> None:
    seen: list[DictConfig] = []
    assert program(seen.append, "-m", "seed=1,2", "max_batchs=3") == 2
    assert capsys.readouterr().err.count("did you mean max_batches") == 1
    assert program(seen.append, "-m", "sampler=eular,ddmi") == 2
    err = capsys.readouterr().err
    assert "did you mean euler" in err
    assert "did you mean ddim" in err
    assert program(seen.append, "-m", "seed=1,2", "task.p=interval(0,1)") == 2
    assert "latentdiff sweep" in capsys.readouterr().err
    assert seen == []
    assert not Path("out").exists()


def test_a_fault_of_some_jobs_refuses_those(program, capsys) -> None:
    seen: list[DictConfig] = []
    assert program(seen.append, "-m", "sampler=ddim,eular", "task.p=0.5,high", "run_dir=s") == 1
    assert [(cfg.sampler.steps, cfg.task.p) for cfg in seen] == [(5, 0.5)]
    captured = capsys.readouterr()
    assert captured.err.count("error: job") == 3
    assert "job 1 refused: key task.p: expected float" in captured.out
    assert states("s") == {0: "done", 1: "refused", 2: "refused", 3: "refused"}
    assert "did you mean euler" in record.read(Path("s")).jobs[2].reason


def failing_at(errors: dict[int, BaseException], seen: list[int]):
    def job(cfg: DictConfig) -> None:
        seen.append(cfg.seed)
        if cfg.seed in errors:
            raise errors[cfg.seed]

    return job


@pytest.mark.parametrize(
    ("errors", "code", "expected"),
    [
        ({1: InputError("no")}, 1, ["refused", "done", "done"]),
        ({2: RuntimeError("bug"), 3: InputError("no")}, 1, ["done", "failed", "refused"]),
        ({1: SystemExit(1)}, 1, ["failed", "done", "done"]),
        ({1: InputError("no"), 2: InputError("no"), 3: InputError("no")}, 2, ["refused"] * 3),
        ({2: KeyboardInterrupt()}, 130, ["done", "stopped", "planned"]),
        ({1: RuntimeError("bug"), 2: SystemExit(138)}, 138, ["failed", "stopped", "planned"]),
        ({1: SystemExit(0)}, 1, ["stopped", "done", "done"]),  # trainer.max_time was up
    ],
)
def test_failing_jobs(program, errors: dict, code: int, expected: list[str]) -> None:
    seen: list[int] = []
    assert program(failing_at(errors, seen), "-m", "seed=1,2,3", "run_dir=s") == code
    assert len(seen) == 3 - expected.count("planned")
    assert list(states("s").values()) == expected


def test_a_sweep_goes_on_in_its_folder_and_may_grow(program, capsys) -> None:
    seen: list[int] = []
    assert program(failing_at({2: KeyboardInterrupt()}, seen), "-m", "seed=1,2", "run_dir=s") == 130
    places: dict[int, str] = {}
    assert program(lambda cfg: places.update({cfg.seed: cfg.run_dir}), "-m", "seed=0,1,2", "run_dir=s") == 0
    assert places == {0: "s/2", 1: "s/0", 2: "s/1"}
    assert states("s") == dict.fromkeys(range(3), "done")
    assert program(failing_at({}, seen), "-m", "task.p=0.1,0.2", "run_dir=s") == 2
    assert "holds a sweep over seed" in capsys.readouterr().err


def test_what_is_done_stays_so_until_it_has_its_turn_again(program) -> None:
    assert program(failing_at({2: InputError("no")}, []), "-m", "seed=1,2,3", "run_dir=s") == 1
    assert program(failing_at({1: KeyboardInterrupt()}, []), "-m", "seed=1,2,3", "run_dir=s") == 130
    assert states("s") == {0: "stopped", 1: "refused", 2: "done"}
    assert record.read(Path("s")).jobs[1].reason == "no"
    line = ("-m", "seed=1,2,3", "max_batches=20", "run_dir=s")  # trains more than what was done
    assert program(failing_at({1: KeyboardInterrupt()}, []), *line) == 130
    assert states("s") == {0: "stopped", 1: "planned", 2: "planned"}


def test_a_job_that_another_process_sees_to_is_left_to_it(program, capsys) -> None:
    assert program(failing_at({}, []), "-m", "seed=1,2", "run_dir=s") == 0
    record.put(Path("s"), 0, record.RUNNING)
    seen: list[int] = []
    with record.claim(Path("s"), 0):
        assert program(failing_at({}, seen), "-m", "seed=1,2", "run_dir=s") == 1
        assert states("s") == {0: "running", 1: "done"}
    assert seen == [2]
    assert "job 0 of s: another process sees to it" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_refused(program, capsys) -> None:
    Path("file").write_text("")
    for line in (["run_dir=file/s"], ["paths.outputs=file"]):
        assert program(failing_at({}, []), "-m", "seed=1,2", *line) == 2
        assert "cannot be written" in capsys.readouterr().err


def test_child_processes_run_their_job_alone(program, monkeypatch) -> None:
    for name in grid_job.PROCESS_GROUP:
        monkeypatch.delenv(name, raising=False)
    seen: list[tuple[list[str], str | None]] = []

    def job(cfg: DictConfig) -> None:
        seen.append((sys.argv[1:], os.environ.get("LOCAL_RANK")))
        os.environ["LOCAL_RANK"] = "0"

    assert program(job, "-m", "--config-dir", "configs", "seed=1,2", "run_dir=a=b") == 0
    options = ["--config-dir", "configs"]
    assert seen == [
        ([*options, f"seed={seed}", "logger.wandb.group='a=b'", f"run_dir='a=b/{seed - 1}'"], None) for seed in (1, 2)
    ]
    assert "LOCAL_RANK" not in os.environ


def test_a_launcher_that_is_not_installed_is_named_with_its_extra(program, monkeypatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert program(lambda cfg: None, "-m", "hydra/launcher=joblib", "seed=1,2") == 2
    assert "latentdiff[sweep]" in capsys.readouterr().err

"""The entry machinery of the root scripts, most of it in this process, exit codes in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig

import latentdiff
from latentdiff.app import launch
from latentdiff.config.errors import InputError

ROOT = """
defaults: [train_schema, _self_, sampler: ddim, task: plain, hydra: plain]
max_batches: 10
global_batch: 4
data: {train: null}
"""


def test_texts_and_paths_arrive_in_the_job(program) -> None:
    seen: list[DictConfig] = []
    assert program(seen.append, "data.train=/a/b=c/{00000..00009}.tar", "run_dir=/x, y/z=1", "seed=3") == 0
    assert (seen[0].data.train, seen[0].run_dir, seen[0].seed) == ("/a/b=c/{00000..00009}.tar", "/x, y/z=1", 3)


def test_faults_are_listed_and_the_job_is_not_run(program, capsys) -> None:
    seen: list[DictConfig] = []
    at_root, in_parts = ("max_batchs=3", "seed=x"), ("task.p=high", "+task.q=1")
    named = {at_root: ["key seed", "key max_batchs"], in_parts: ["key task.q", "key task.p"]}
    named[at_root + in_parts] = named[at_root]  # parts are looked at when the keys are right
    for argv, keys in named.items():
        assert program(seen.append, *argv) == 2
        lines = capsys.readouterr().err.splitlines()
        assert seen == []
        assert [line.split(":")[1].strip() for line in lines] == keys
        assert all(line.startswith("error: key ") for line in lines)


def failing_at(errors: dict[int, BaseException], seen: list[int]):
    def job(cfg: DictConfig) -> None:
        seen.append(cfg.seed)
        if cfg.seed in errors:
            raise errors[cfg.seed]

    return job


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("first\nsecond"), 2),
        (RuntimeError("bug"), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(143), 143),
        (SystemExit(138), 138),
        (SystemExit(0), 0),
        (SystemExit(3), 3),
    ],
)
def test_exit_codes(program, capsys, error: BaseException, code: int) -> None:
    assert program(failing_at({1: error}, []), "seed=1") == code
    err = capsys.readouterr().err
    assert ("Traceback" in err) is (code == 1)
    assert (err == "error: first\nsecond\n") is (code == 2)


def test_a_root_key_that_is_not_read_is_refused_with_a_plus_too(program, capsys) -> None:
    seen: list[DictConfig] = []
    assert program(seen.append, "+sampelr=ddim") == 2
    assert (
        capsys.readouterr().err
        == "error: key sampelr: this program reads no such key; did you mean sampler?; leave it out\n"
    )
    assert seen == []


def test_help_names_groups_or_shows_the_configuration(program, capsys) -> None:
    assert program(lambda cfg: None, "--help", "sampler") == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["  ddim", "  euler"]
    assert program(lambda cfg: None, "--help", "sampler=euler") == 0
    assert yaml.safe_load(capsys.readouterr().out)["sampler"] == {"steps": 6}
    assert program(lambda cfg: None, "--help", "sampler=eular") == 2


def test_hydra_s_own_commands_still_work(program, capsys) -> None:
    assert program(lambda cfg: None, "--cfg", "job", "sampler=euler") == 0
    assert "steps: 6" in capsys.readouterr().out
    assert program(lambda cfg: None, "--help") == 0
    assert program(lambda cfg: None, "--cfg", "job", "sampler=eular") == 2


def test_missing_configs_are_explained(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "train.py")])
    assert launch.run(lambda cfg: None, "no_such_root") == 2
    assert str(tmp_path / "configs") in capsys.readouterr().err


SCRIPT = """
import signal, sys, time
from latentdiff.app.launch import launch

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits it ignored

def job(cfg):
    print("started", flush=True)
    time.sleep(60 if cfg.seed else 0)

if __name__ == "__main__":
    assert "torch" not in sys.modules
    launch(job, "train")
"""


def script(folder: Path, *argv: str) -> subprocess.Popen[str]:
    (folder / "train.py").write_text(SCRIPT)
    command = [sys.executable, "train.py", *argv]
    env = {**os.environ, "PYTHONPATH": str(Path(latentdiff.__file__).parents[1])}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_exit_with_the_codes(program, tmp_path: Path) -> None:
    refused, interrupted, stopped = (
        script(tmp_path, "sampler=eular"),
        script(tmp_path, "seed=1", "~task"),
        script(tmp_path, "seed=1", "~task"),
    )
    _, err = refused.communicate()
    assert refused.returncode == 2
    assert err.startswith("error: key sampler: there is no 'sampler/eular'; did you mean euler?")
    for process, number, codes in (
        (interrupted, signal.SIGINT, (130,)),
        (stopped, signal.SIGTERM, (143, -signal.SIGTERM)),
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        time.sleep(0.05)
        process.send_signal(number)
        process.communicate()
        assert process.returncode in codes

"""What the loggers of a training hold, read back from their files, also where W&B is not to be had."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latentdiff.training.wandb_logger import WandbLogger

LOGGERS = ("logger=[csv,wandb,tensorboard]", "logger.wandb.artifacts=true")
SPEEDS = {"images_per_second", "memory_gib", "data_wait"}


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def series(rows: list[dict], leave_out: set[str] = frozenset()) -> dict[str, list[tuple[int, float]]]:
    """Name -> (images seen, value) of every row that has it."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, (int, float)) and not name.startswith("_") and name not in leave_out:
                found.setdefault(name, []).append((row["images_seen"], value))
    return {name: values for name, values in found.items() if not name.endswith("_seen")}


def tensorboard(run_dir: Path) -> EventAccumulator:
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    return events


def pictures(rows: list[dict], name: str) -> list[int]:
    """Batches whose rows have it."""
    return [row["batches_seen"] for row in rows if name in row]


@pytest.fixture(scope="module")
def stages(programs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run directories of both stages, with all loggers."""
    one, two = (tmp_path_factory.mktemp("tracked") / name for name in ("one", "two"))
    programs.done("train", *programs.stage_one, *LOGGERS, f"run_dir={one}")
    own = ("metrics@callbacks.samples.scores=shapes_text", f"first_stage.checkpoint={one}", f"run_dir={two}")
    programs.done("train", *programs.stage_two, *LOGGERS, *own)
    return one, two


def test_wandb_has_every_value_of_both_stages_by_images_seen(stages, read_wandb) -> None:
    for run_dir in stages:
        run = read_wandb(run_dir)
        assert series(run.rows) == series(lines(run_dir))
        assert run.axes == {"*": "images_seen"}
        assert [row["_step"] for row in run.rows] == list(range(len(run.rows)))
    one, two = (set(series(lines(run_dir))) for run_dir in stages)
    assert {"train/nll", "train/lr", "train/discriminator_lr", "train/grad_norm", "val/psnr", *SPEEDS} <= one
    assert {"train/loss", "train/loss_t3", "train/lr", "val/loss", "val/loss_v_t0", *SPEEDS} <= two


def test_wandb_has_the_pictures_and_the_table(stages, read_wandb) -> None:
    one, two = (read_wandb(run_dir) for run_dir in stages)
    assert pictures(one.rows, "reconstructions") == pictures(two.rows, "samples") == [2, 4]
    assert pictures(two.rows, "samples_table") == [2, 4]
    files = sorted(stages[1].glob("wandb/offline-run-*/files/media/table/*.json"))
    table = json.loads(files[-1].read_text())
    assert table["columns"][:5] == ["prompt", "seed", "guidance", "steps", "image"]
    assert {"captions.one_object.shape", "captions.two_objects.shape"} <= set(table["columns"][5:])
    assert [row[1:4] for row in table["data"]] == [[seed, 3.0, 2] for seed in range(4)]
    stored = [a for a in two.artifacts if a.type == "run_table"][-1]
    images = [Path(e.local_path) for e in stored.manifest.contents if e.path.endswith(".png")]
    assert len(images) == 4
    assert all(stages[1].resolve() in image.resolve().parents and image.is_file() for image in images)


def test_wandb_has_the_configuration_versions_and_checkpoints(stages, read_wandb) -> None:
    for run_dir in stages:
        run = read_wandb(run_dir)
        config = yaml.safe_load((run_dir / "config.yaml").read_text())
        assert {name: run.config[name] for name in config} == json.loads(json.dumps(config))
        assert {"latentdiff", "revision", "packages", "device"} <= set(run.config["environment"])
        assert (run.runs[0].display_name, run.runs[0].run_group) == (run_dir.name, config["experiment"])
        models = [artifact for artifact in run.artifacts if artifact.type == "model"]
        assert sorted(alias for model in models for alias in model.aliases if alias != "latest") == ["best", "last"]
        for entry in models[-1].manifest.contents:
            assert (run_dir / "wandb/checkpoints") in Path(entry.local_path).parents
            assert Path(entry.local_path).is_file()


def test_csv_and_tensorboard_have_the_same(stages) -> None:
    for run_dir, grid in zip(stages, ("reconstructions", "samples")):
        found = lines(run_dir)
        with (run_dir / "csv/version_0/metrics.csv").open() as file:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
        assert series(rows, {"step"}) == series(found)
        events = tensorboard(run_dir)
        for name, values in series(found).items():
            assert [event.value for event in events.Scalars(name)] == pytest.approx([value for _, value in values])
        assert [event.step for event in events.Images(grid)] == [2, 4]


def test_a_resumed_run_has_one_history(programs, read_wandb, tmp_path: Path) -> None:
    """Its last lines and grids came after the checkpoint that it goes on from, and are made again."""
    command = (*programs.stage_one, *LOGGERS, "max_batches=6", "callbacks.reconstructions.every=1")
    programs.done("train", *command, f"run_dir={tmp_path}")
    for name in ("last", "best"):
        if _batches(tmp_path / "checkpoints" / name) == 6:
            shutil.rmtree(tmp_path / "checkpoints" / name)
    outcome = programs.done("train", *command, f"run_dir={tmp_path}")
    assert re.search(r"resuming from .* at batch 4\b", outcome.out)
    run, found = read_wandb(tmp_path), lines(tmp_path)
    assert len(run.runs) == 2
    assert {one.run_id for one in run.runs} == {(tmp_path / "wandb.id").read_text().strip()}
    assert series(run.rows, SPEEDS) == series(found, SPEEDS)
    assert pictures(run.rows, "reconstructions") == [1, 2, 3, 4, 5, 6]
    assert [row["_step"] for row in run.rows] == list(range(len(run.rows)))
    with (tmp_path / "csv/version_0/metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [line["batches_seen"] for line in found]
    assert [event.step for event in tensorboard(tmp_path).Scalars("train/nll")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in tensorboard(tmp_path).Images("reconstructions")] == [1, 2, 3, 4, 5, 6]


def _batches(checkpoint: Path) -> int:
    return json.loads((checkpoint / "manifest.json").read_text())["counters"]["batches_seen"]


def test_it_ends_although_other_processes_hold_its_input(tmp_path: Path, caplog) -> None:
    """As those of a DataLoader do, which are forked after it."""
    logger = WandbLogger(run_dir=str(tmp_path), offline=True, connect_timeout=1, finish_timeout=20)
    logger.begin()
    held = (logger._pipe._process.stdin.fileno(),)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=held) as other:
        logger.finalize("success")
        assert other.poll() is None
        other.stdin.close()
    assert caplog.text == ""


def test_a_run_that_begins_with_wandb_late_sends_it_all(programs, read_wandb, tmp_path: Path) -> None:
    programs.done("train", *programs.stage_one, "max_batches=2", f"run_dir={tmp_path}")
    programs.done("train", *programs.stage_one, "logger=wandb", f"run_dir={tmp_path}")
    run = read_wandb(tmp_path)
    assert series(run.rows) == series(lines(tmp_path))
    assert pictures(run.rows, "reconstructions") == [2, 4]


@pytest.mark.faults
@pytest.mark.parametrize("everything", [False, True], ids=["training", "W&B too"])
def test_a_killed_run_has_one_history(programs, read_wandb, tmp_path: Path, everything: bool) -> None:
    """Killed at any moment, with what it had not saved, and where W&B dies with it with what that had not written."""
    every = (*programs.stage_one, *LOGGERS, "max_batches=200", "validate_every=20", f"run_dir={tmp_path}")
    training = programs.start("train", *every, start_new_session=True)
    record = tmp_path / "metrics.jsonl"
    _until(lambda: record.exists() and len(record.read_text().splitlines()) > 60)
    others = _children(training.pid) if everything else []
    for pid in (training.pid, *others):
        os.kill(pid, signal.SIGKILL)
    training.communicate()
    _until(lambda: not any(Path(f"/proc/{pid}").exists() and _running(pid) for pid in others))
    time.sleep(0 if everything else 5)  # the rest is written by W&B
    programs.done("train", *every)
    run = read_wandb(tmp_path)
    assert series(run.rows, SPEEDS) == series(lines(tmp_path), SPEEDS)
    assert pictures(run.rows, "reconstructions") == list(range(20, 201, 20))


def _children(pid: int) -> list[int]:
    own = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*own, *(far for each in own for far in _children(each))]


def _running(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("waited for a minute")


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a W&B that is "closed", "silent" (takes connections, never answers) or "broken" (answers 500)."""
    listening = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    held: list[socket.socket] = []

    def answer() -> None:
        while True:
            try:
                held.append(listening.accept()[0])
                if request.param == "broken":
                    held[-1].recv(2**16)
                    held[-1].sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
                    held[-1].close()
            except OSError:
                return

    if request.param == "closed":
        listening.close()
    else:
        threading.Thread(target=answer, daemon=True).start()
    yield address
    for one in (listening, *held):
        one.close()


@pytest.mark.parametrize(
    "server", ["closed", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("silent", "broken"))], indirect=True
)
def test_a_wandb_that_cannot_be_reached_costs_a_warning(
    programs, server: str, read_wandb, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setitem(programs.environment, "WANDB_MODE", "online")
    monkeypatch.setitem(programs.environment, "WANDB_BASE_URL", server)
    monkeypatch.setitem(programs.environment, "WANDB_API_KEY", "0" * 40)
    ours = ("logger=wandb", "logger.wandb.connect_timeout=2", f"run_dir={tmp_path}")
    outcome = programs.done("train", *programs.stage_one, *ours)
    assert len(re.findall("W&B cannot be reached .* later with: wandb sync /", outcome.err)) == 1
    assert series(read_wandb(tmp_path).rows) == series(lines(tmp_path))


def test_without_a_key_nobody_is_asked(programs, read_wandb, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(programs.environment, "WANDB_MODE", "online")
    monkeypatch.setitem(programs.environment, "HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    own = ("logger=wandb", "max_batches=1", f"run_dir={tmp_path / 'run'}")
    outcome = programs.done("train", *programs.stage_one, *own)
    assert "W&B cannot be reached (No API key configured" in outcome.err
    assert series(read_wandb(tmp_path / "run").rows) == series(lines(tmp_path / "run"))


@pytest.mark.slow
def test_a_service_that_is_killed_costs_a_warning(programs, tmp_path: Path) -> None:
    command = (*programs.stage_one, "logger=wandb", "max_batches=120", "validate_every=60", f"run_dir={tmp_path}")
    training = programs.start("train", *command)
    record = tmp_path / "metrics.jsonl"
    _until(lambda: record.exists() and len(record.read_text().splitlines()) > 30)
    (worker,) = (pid for pid in _children(training.pid) if "wandb_worker" in Path(f"/proc/{pid}/cmdline").read_text())
    for pid in _children(worker):
        os.kill(pid, signal.SIGKILL)
    _, err = training.communicate(timeout=120)
    assert training.returncode == 0, err
    assert "W&B did not take a row" in err or "W&B failed" in err
    assert lines(tmp_path)[-1]["batches_seen"] == 120


@pytest.mark.slow
def test_only_one_of_two_processes_talks(programs, read_wandb, tmp_path: Path) -> None:
    training = programs.start("train", *programs.stage_one, "trainer=ddp_cpu", "logger=wandb", f"run_dir={tmp_path}")
    _, err = training.communicate(timeout=120)
    assert training.returncode == 0, err
    run = read_wandb(tmp_path)
    assert len(run.runs) == 1
    assert series(run.rows) == series(lines(tmp_path))
    assert run.config["environment"]["world_size"] == 2

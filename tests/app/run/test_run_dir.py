"""From which checkpoint a run goes on, and what it says of damaged ones."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

from latentdiff.app.run.run_dir import prepare, resume_from
from latentdiff.checkpoint import shelf, store
from latentdiff.config.errors import InputError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with ``last`` of batch 6, ``batch-00000004`` and ``best`` of batch 2."""
    for name, batches_seen in (("best", 2), ("last", 4), ("last", 6)):
        save(tmp_path, name, batches_seen)
    return tmp_path


def save(run_dir: Path, name: str, batches_seen: int, resume: str = "auto") -> Path:
    place = run_dir / "checkpoints" / name
    generator = torch.Generator().manual_seed(batches_seen)
    store.save(
        place,
        kind="diffusion",
        model={"a": torch.randn(20, 20, generator=generator)},
        ema={"ema.a": torch.randn(20, 20, generator=generator)},
        train_state={"step": torch.randn(20, generator=generator)},
        config=f"seed: 1\nresume: {resume}\n",
        counters={"batches_seen": batches_seen, "images_seen": 8 * batches_seen},
        keep_as=shelf.keep_as(place, batches_seen),
    )
    return place


def break_manifest(checkpoint: Path) -> None:
    (checkpoint / store.MANIFEST).write_text("{")


@pytest.mark.parametrize(("resume", "name"), [("auto", "last"), ("last", "last")])
def test_of_whole_checkpoints_the_newest_or_the_named_one_is_taken(run: Path, capsys, resume: str, name: str) -> None:
    assert resume_from(run, resume) == run / "checkpoints" / name
    assert capsys.readouterr().err == ""


def test_paths_are_of_checkpoints_or_of_runs(run: Path, tmp_path_factory) -> None:
    empty = tmp_path_factory.mktemp("other")
    for path in (run, run / "checkpoints", run / "checkpoints" / "last"):
        assert resume_from(empty, str(path)) == run / "checkpoints" / "last"
    older = run / "checkpoints" / "batch-00000004"
    assert resume_from(empty, str(older)) == older


def test_a_new_run_starts_from_nothing(tmp_path: Path) -> None:
    assert resume_from(tmp_path, "auto") is None
    assert resume_from(tmp_path, "never") is None
    (tmp_path / "checkpoints" / ".tmp-last-01234567").mkdir(parents=True)
    assert resume_from(tmp_path, "auto") is None
    for name in ("last", "best"):
        with pytest.raises(InputError, match=f"no checkpoint found under '.*checkpoints/{name}'"):
            resume_from(tmp_path, name)


@pytest.mark.parametrize("name", ["best", "batch-00000004"])
def test_what_would_overwrite_newer_progress_is_refused(run: Path, tmp_path_factory, name: str) -> None:
    older = run / "checkpoints" / name
    resume = "best" if name == "best" else str(older)
    with pytest.raises(InputError, match=rf"holds 'last' of batch 6.* '{older}' \(batch [24]\).*resume=auto"):
        resume_from(run, resume)
    other = tmp_path_factory.mktemp("other")
    with pytest.raises(InputError, match="holds 'last' of batch 6, which training from"):
        resume_from(run, str(save(other, "last", 9)))
    shutil.rmtree(run / "checkpoints" / "last")
    if name == "batch-00000004":
        assert resume_from(run, resume) == older


def test_best_may_be_the_newest(run: Path) -> None:
    assert resume_from(run, str(save(run, "best", 6))) == resume_from(run, "best") == run / "checkpoints" / "best"


def test_the_command_that_began_a_run_elsewhere_goes_on_when_it_is_given_again(run: Path, tmp_path_factory) -> None:
    new, path = tmp_path_factory.mktemp("new"), str(run / "checkpoints" / "best")
    assert resume_from(new, path) == Path(path)
    own = save(new, "last", 3, resume=path)
    assert resume_from(new, path) == own
    shutil.rmtree(path)
    assert resume_from(new, path) == own
    with pytest.raises(InputError, match="'last' of batch 3"):
        resume_from(new, str(run))


def test_never_goes_on_in_a_job_that_slurm_has_queued_again(tmp_path: Path, monkeypatch) -> None:
    own = save(tmp_path, "last", 3, resume="never")
    with pytest.raises(InputError, match="resume=never would overwrite"):
        resume_from(tmp_path, "never")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert resume_from(tmp_path, "never") == own
    save(tmp_path, "last", 4, resume="auto")
    with pytest.raises(InputError, match="resume=never would overwrite"):
        resume_from(tmp_path, "never")


def test_never_does_not_overwrite(run: Path) -> None:
    with pytest.raises(InputError, match="already holds checkpoints and resume=never would overwrite them"):
        resume_from(run, "never")


@pytest.mark.parametrize("resume", ["auto", "last"])
def test_forty_damages_are_found_and_passed_over(run: Path, capsys, resume: str) -> None:
    """20 truncations and 20 changed bytes, each at a random place of a random file of the newest checkpoint."""
    draw = random.Random(0)
    last = run / "checkpoints" / "last"
    shutil.copytree(last, run / "whole")
    touched = set()
    for number in range(40):
        name = draw.choice(sorted(path.name for path in last.iterdir()))
        whole = (last / name).read_bytes()
        place = draw.randrange(len(whole))
        changed = bytes([whole[place] ^ draw.randrange(1, 256)]) + whole[place + 1 :] if number % 2 else b""
        (last / name).write_bytes(whole[:place] + changed)
        assert resume_from(run, resume) == run / "checkpoints" / "batch-00000004"
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("warning: passed over: ") and f"{last}" in line and name in line, line  # noqa: PT018
        (last / name).write_bytes(whole)
        touched.add(name)
    assert touched == {path.name for path in last.iterdir()}
    assert resume_from(run, resume) == last


def test_a_missing_last_is_no_damage(run: Path, capsys) -> None:
    """A process was killed between the two renames of a save."""
    shutil.rmtree(run / "checkpoints" / "last")
    assert resume_from(run, "auto") == resume_from(run, "last") == run / "checkpoints" / "batch-00000004"
    assert capsys.readouterr().err == ""


def test_each_damaged_one_has_a_line_and_best_comes_to_the_rescue(run: Path, capsys) -> None:
    for name in ("last", "batch-00000004"):
        break_manifest(run / "checkpoints" / name)
    assert resume_from(run, "auto") == run / "checkpoints" / "best"
    assert len(capsys.readouterr().err.splitlines()) == 2
    with pytest.raises(InputError, match=r"none of the checkpoints in '.*' is whole(?s:.*)last/manifest(?s:.*)batch-0"):
        resume_from(run, "last")


def test_a_run_with_damaged_checkpoints_alone_is_not_started_again(run: Path) -> None:
    for path in shelf.standing(run / "checkpoints"):
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="a run does not start again over what is left of it") as refused:
        resume_from(run, "auto")
    assert str(refused.value).count("model.safetensors: ") == 3


@pytest.mark.parametrize("name", ["best", "batch-00000004"])
def test_a_named_one_that_is_damaged_is_refused_with_a_whole_one_named(run: Path, name: str) -> None:
    damaged = run / "checkpoints" / name
    (damaged / "ema.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=rf"resume: .*ema\.safetensors: .* Whole is '{run}/checkpoints/last'"):
        resume_from(run, "best" if name == "best" else str(damaged))


def test_only_the_first_process_of_a_machine_speaks(run: Path, capsys, monkeypatch) -> None:
    break_manifest(run / "checkpoints" / "last")
    monkeypatch.setenv("LOCAL_RANK", "1")
    resume_from(run, "auto")
    assert capsys.readouterr().err == ""


def test_a_requeued_slurm_job_finds_its_folder_and_other_commands_have_theirs(tmp_path: Path, monkeypatch) -> None:
    def folder(*argv: str) -> Path:
        monkeypatch.setattr("sys.argv", ["train.py", *argv])
        monkeypatch.delenv("LATENTDIFF_RUN_DIR", raising=False)
        return prepare(None, outputs=str(tmp_path), name="ae_kl")

    monkeypatch.setenv("SLURM_JOB_ID", "77")
    first = folder("experiment=ae_kl", "seed=1")
    assert first.parent == tmp_path / "ae_kl"
    assert first.name.startswith("slurm-77-")
    assert folder("experiment=ae_kl", "seed=1") == first
    assert folder("experiment=ae_kl", "seed=2") != first
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert folder("experiment=ae_kl", "seed=1").name.startswith("slurm-70_3-")

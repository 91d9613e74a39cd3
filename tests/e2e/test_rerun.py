"""A run made again from its directory is the same, bit for bit; what doctor tells of it beforehand is so."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from latentdiff.app import cli


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / "last" / "ema.safetensors")


def test_a_rerun_is_the_same_bit_for_bit(
    programs: Callable, autoencoder: Path, ldm: Path, metrics: Callable, tmp_path: Path
) -> None:
    outcome = programs.done("train", "--from", str(ldm), f"run_dir={tmp_path / 'again'}", "print_config=true")
    first, again = weights(ldm), weights(tmp_path / "again")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [line["train/loss"] for line in metrics(ldm) if "train/loss" in line] == [
        line["train/loss"] for line in metrics(tmp_path / "again") if "train/loss" in line
    ]
    own, other = (yaml.safe_load((path / "config.yaml").read_text()) for path in (ldm, tmp_path / "again"))
    assert other["run_dir"] == str(tmp_path / "again")
    assert {key for key in own if own[key] != other[key]} <= {"run_dir", "print_config", "callbacks", "logger"}
    assert yaml.safe_load(outcome.out[outcome.out.index("run_dir: ") : outcome.out.index("run directory:")]) == other
    assert f"first stage    {autoencoder}/checkpoints/last" in outcome.out.replace("\n" + " " * 15, "")
    assert re.search(r"^batches +4 of 8 images, 8 per process$", outcome.out, re.MULTILINE)
    parameters = re.search(r"^parameters +denoiser .* conditioner .* codec .* frozen", outcome.out, re.MULTILINE)
    assert parameters, outcome.out
    assert "print_config=true" in yaml.safe_load((tmp_path / "again" / "overrides.yaml").read_text())


def test_the_size_that_doctor_tells_is_that_of_the_checkpoint(
    programs: Callable, ldm: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(programs.home)
    line = [*programs.stage_two, f"first_stage.checkpoint={ldm.parent / 'autoencoder'}", "--steps", "2"]
    assert cli.main(["doctor", *line]) == 0
    told = re.search(r"checkpoints +([\d.]+) MiB each", capsys.readouterr().out)
    files = (ldm / "checkpoints" / "last").iterdir()
    assert float(told[1]) == pytest.approx(sum(file.stat().st_size for file in files) / 2**20, rel=0.02)


def test_sample_is_made_again_too(programs: Callable, ldm: Path, tmp_path: Path) -> None:
    line = [*programs.use, f"checkpoint={ldm}", "prompt=a, b=c", "seeds=[3]", "sampler.steps=2"]
    programs.done("sample", *line, f"run_dir={tmp_path / 'one'}")
    programs.done("sample", "--from", str(tmp_path / "one"), f"run_dir={tmp_path / 'two'}")
    one, two = ((tmp_path / name / "0000-seed3.png").read_bytes() for name in ("one", "two"))
    assert one == two
    assert yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())["prompt"] == "a, b=c"

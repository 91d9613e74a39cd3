"""Training with power-function averages, from given weights, and an average of another length made of its snapshots."""

from __future__ import annotations

from pathlib import Path

import torch

from latentdiff.app import cli
from latentdiff.checkpoint import store
from latentdiff.checkpoint.models import load_diffusion

POWER_EMA = "task.power_ema={_target_: latentdiff.training.power_ema.PowerEma, _partial_: true}"


def backbone(path: Path, part: str) -> dict[str, torch.Tensor]:
    prefix = {"model": "model.denoiser.backbone.", "ema": "ema.model.denoiser.backbone."}[part]
    weights = store.load_weights(path / "checkpoints" / "last", part)
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def test_train_stop_resume_reconstruct_and_sample(programs, autoencoder: Path, tmp_path: Path) -> None:
    constant = ("optim=adamw", "diffusion=rectified_flow")  # nothing that depends on max_batches
    where = f"first_stage.checkpoint={autoencoder}"
    first = (*programs.stage_two, *constant, where, POWER_EMA)
    one, two = tmp_path / "one", tmp_path / "two"
    programs.done("train", *first, "max_batches=3", f"run_dir={one}")
    programs.done("train", *first, "max_batches=6", f"run_dir={one}")
    programs.done("train", *first, "max_batches=6", f"run_dir={two}")
    for length in ("0.05", "0.1", "0.12"):
        for run in (one, two):
            assert cli.main(["ema", str(run), str(run / length), "--length", length]) == 0
        weights = [store.load_weights(run / length, "ema") for run in (one, two)]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    made, own = load_diffusion(one / "0.1"), store.load_weights(one / "checkpoints" / "last")
    name = "denoiser.backbone.out.2.weight"
    found = made.denoiser.backbone.out[2].weight
    torch.testing.assert_close(found, own[f"power_ema.averages.1.{name}"])
    assert not torch.equal(found, own[f"model.{name}"])
    assert cli.main(["ema", str(one), str(one / "again"), "--length", "0.28"]) == 2
    programs.done(
        "sample", *programs.use, f"checkpoint={one / '0.12'}", "prompt=a red circle", f"run_dir={tmp_path / 'samples'}"
    )
    again = (f"resume={one / '0.12'}", "max_batches=8", f"run_dir={tmp_path / 'resumed'}")
    refused = programs("train", *first, *again)
    assert refused.code == 2
    assert "saved without training state" in refused.err


def test_training_starts_from_the_weights_named(programs, autoencoder: Path, ldm: Path, tmp_path: Path) -> None:
    """Without a learning rate they stay, in the model and in its average."""
    command = (*programs.stage_two, f"first_stage.checkpoint={autoencoder}", f"init_backbone={ldm}", "optim.lr=0.0")
    programs.done("train", *command, "max_batches=1", f"run_dir={tmp_path}")
    wanted = backbone(ldm, "ema")
    for part in ("model", "ema"):
        found = backbone(tmp_path, part)
        assert found.keys() == wanted.keys()
        assert all(torch.allclose(found[name], wanted[name]) for name in wanted)

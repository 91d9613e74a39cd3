"""Stage two on an autoencoder that another program wrote, from the command line."""

from __future__ import annotations

from pathlib import Path

import torch

from latentdiff.app import cli
from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign.architecture import Architecture

ARCHITECTURE = Architecture(
    image_channels=3, channels=32, channel_multipliers=(1, 2), num_res_blocks=1, z_channels=3, embed_dim=3
)


def test_stage_two_trains_resumes_and_samples_with_another_program_s_autoencoder(
    programs, metrics, tmp_path: Path
) -> None:
    """A file of CompVis, which needs a scale, and a diffusers folder of the same weights, which says it."""
    torch.manual_seed(0)
    weights = ARCHITECTURE.on_meta().to_empty(device="cpu").state_dict()
    weights = {name: 0.05 * torch.randn_like(value) for name, value in weights.items()}
    ckpt, folder = tmp_path / "model.ckpt", tmp_path / "vae"
    torch.save({"state_dict": weights | {"loss.logvar": torch.zeros(())}, "epoch": 3}, ckpt)
    assert cli.main(["export", str(ckpt), str(folder), "--format", "diffusers", "--scale", "2.0"]) == 0

    file, whole = tmp_path / "file", tmp_path / "folder"
    named = (f"first_stage.checkpoint={ckpt}", "first_stage.scale=2.0")
    programs.done("train", *programs.stage_two, *named, "max_batches=2", f"run_dir={file}")
    named = (f"first_stage.checkpoint={folder}", "max_batches=1")
    programs.done("train", *programs.stage_two, *named, f"run_dir={whole}")
    programs.done("train", *programs.stage_two, "max_batches=2", f"run_dir={whole}")  # keeps its first stage
    assert metrics(whole)[-2:] == metrics(file)[-2:]
    last = store.read_manifest(whole / "checkpoints/last")
    assert last.latent == {"channels": 3, "factor": 2}
    assert (last.first_stage["path"], last.first_stage["std"]) == (str(folder), [0.5] * 3)

    settings = ("prompt=a red circle", "seeds=[0]", f"run_dir={tmp_path / 'samples'}")
    programs.done("sample", *programs.use, f"checkpoint={whole}", *settings)
    assert (tmp_path / "samples/0000-seed0.png").is_file()

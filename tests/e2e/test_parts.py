"""A part that the tiny runs do not use by default: open_clip's text encoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from latentdiff.checkpoint import store

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folder of a tiny CLIP's configuration, and a file of its weights."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-clip").state_dict(), folder / "tiny-clip.pt")
    return folder, folder / "tiny-clip.pt"


def test_a_frozen_clip_conditions_a_run_and_is_in_no_checkpoint(
    programs, autoencoder: Path, clip: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, weights = clip
    kept = [line for line in programs.stage_two if not line.startswith("conditioner")]
    chosen = (
        "conditioner=open_clip_text",
        "conditioner.width=32",
        "conditioner.module.model=tiny-clip",
        f"conditioner.module.weights={weights}",
        f"+conditioner.module.model_config={folder}",
    )
    run_dir = tmp_path / "run"
    programs.done("train", *kept, *chosen, f"first_stage.checkpoint={autoencoder}", f"run_dir={run_dir}")
    names = store.load_weights(run_dir / "checkpoints" / "last", "ema")
    assert not [name for name in names if "clip" in name]
    programs.done(
        "sample", *programs.use, f"checkpoint={run_dir}", "prompt=a red circle", f"run_dir={tmp_path / 'samples'}"
    )
    assert (tmp_path / "samples" / "0003-seed3.png").is_file()

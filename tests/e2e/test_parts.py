"""Parts that the tiny runs do not use by default: open_clip's text encoder, W&B."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
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


def test_wandb_offline_gets_the_values_the_pictures_and_the_axis(programs, metrics, tmp_path: Path) -> None:
    programs.done("train", *programs.stage_one, "logger=[csv,wandb]", f"run_dir={tmp_path}")
    programs.done("train", *programs.stage_one, "logger=wandb", "max_batches=1", f"run_dir={tmp_path / 'next'}")
    (path,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    rows = history(path)
    logged = {int(row["trainer/global_step"]): row["train/nll"] for row in rows if "train/nll" in row}
    assert logged == {line["batches_seen"]: line["train/nll"] for line in metrics(tmp_path) if "train/nll" in line}
    assert [int(row["trainer/global_step"]) for row in rows if "reconstructions/_type" in row] == [2, 4]
    assert len(list((tmp_path / "next" / "wandb").glob("offline-run-*"))) == 1
    assert (tmp_path / "csv" / "version_0" / "metrics.csv").is_file()


def history(path: Path) -> list[dict]:
    """The rows that a W&B run file holds."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def records(data: bytes) -> Iterator[bytes]:
    """LevelDB's log format, after W&B's header of 7 bytes: blocks of 32 KiB, each piece with crc, length and type."""
    position, whole = 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        size, kind = struct.unpack_from("<HB", data, position + 4)
        whole += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield whole
            whole = b""

"""Lightning's checkpoints as the self-describing directories of ``checkpoint.store``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from latentdiff.checkpoint import shelf, store
from latentdiff.checkpoint.space import free_bytes, readable, tensor_bytes


class DirectoryCheckpointIO(CheckpointIO):
    """Splits what Lightning hands over into weights, averaged weights and training state, and joins it again.

    Lightning's loop and callback states are left out: progress is what the module counts (``Counters``), and a
    callback that needs memory reads it from the manifest.

    Args:
        config: the run's resolved configuration, as YAML text.
        first_stage: path and digest of the first stage that a diffusion model was trained on, or None.
        data: what the run is trained on: {"fingerprint": of the training samples}, or None.
    """

    def __init__(self, *, config: str, first_stage: dict | None = None, data: dict | None = None):
        self.config, self.first_stage, self.data = config, first_stage, data
        self.failure: str | None = None
        """Why the disk refused the last save; None when it was written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any | None = None) -> None:
        """On rank 0, while the others wait: what the disk refuses is noted in ``failure``, for all of them."""
        self.failure = None
        try:
            self._save(checkpoint, Path(path))
        except OSError as error:
            needed, free = readable(tensor_bytes(checkpoint)), readable(free_bytes(Path(path)))
            self.failure = f"{error.strerror or error}; {needed} needed, {free} free at '{path}'"

    def _save(self, checkpoint: dict[str, Any], path: Path) -> None:
        about = checkpoint["latentdiff"]
        weights = checkpoint["state_dict"]
        ema = {name: value for name, value in weights.items() if name.startswith("ema.")}
        model = {name: value for name, value in weights.items() if name not in ema}
        store.save(
            path,
            kind=about["kind"],
            model=model,
            ema=ema,
            train_state={
                "optimizer_states": checkpoint["optimizer_states"],
                "epoch": 0,
                "global_step": checkpoint["global_step"],
                "pytorch-lightning_version": checkpoint["pytorch-lightning_version"],
            },
            config=self.config,
            counters=about["counters"],
            latent=about["latent"],
            first_stage=self.first_stage,
            data=self.data,
            world_size=about["world_size"],
            extra=about["extra"],
            keep_as=shelf.keep_as(path, about["counters"]["batches_seen"]),
        )

    def load_checkpoint(self, path: str, map_location: Any | None = None, weights_only: bool | None = None) -> dict:
        manifest = store.verify(path)
        weights = {**store.load_weights(path, "model"), **store.load_weights(path, "ema")}
        state = store.load_train_state(path)
        return {
            **state,
            "state_dict": weights,
            "lr_schedulers": [],
            "callbacks": {},
            "latentdiff": {"counters": manifest.counters, "extra": manifest.extra},
        }

    def remove_checkpoint(self, path: str) -> None:
        raise NotImplementedError("checkpoints are pruned by the checkpoint callback, not by Lightning")


def describe(module: torch.nn.Module, world_size: int, extra: dict) -> dict[str, Any]:
    """The part of a checkpoint that Lightning does not know: what it is and how far training has come."""
    return {
        "kind": module.kind,
        "counters": module.counters.as_dict(),
        "latent": module.latent,
        "world_size": world_size,
        "extra": extra,
    }

"""Lightning's TensorBoard logger with pictures, and one history where a run is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from pytorch_lightning import loggers


class TensorBoardLogger(loggers.TensorBoardLogger):
    """One folder for all processes of a run.

    Args:
        save_dir: the run directory; holds the folder.
        name: of the folder.
    """

    def __init__(self, *, save_dir: str, name: str):
        super().__init__(save_dir=save_dir, name=name, version="", default_hp_metric=False)

    def go_on(self, batches_seen: int) -> None:
        """TensorBoard does not show what earlier files of the folder have of later batches (``purge_step``)."""
        if any(Path(self.log_dir).glob("events.*")):
            # its reader takes the step of a new session's start for the first that is to be forgotten
            self._kwargs["purge_step"] = batches_seen + 1

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """On disk at once: what a killed process leaves is whole up to its last checkpoint."""
        super().log_metrics(metrics, step)
        self.experiment.flush()

    def log_config(self, config: Mapping[str, object], environment: Mapping[str, object]) -> None:
        for name, values in (("config", config), ("environment", environment)):
            indented = json.dumps(values, indent=2, default=str).replace("\n", "\n    ")
            self.experiment.add_text(name, "    " + indented, 0)
        self.experiment.flush()

    def log_picture(self, name: str, path: Path, counters: Mapping[str, int]) -> None:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self.experiment.add_image(name, pixels, counters["batches_seen"], dataformats="HWC")
        self.experiment.flush()

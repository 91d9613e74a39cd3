"""Lightning's TensorBoard logger for a disk that may be full, with pictures, and one history where a run is resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from pytorch_lightning import loggers

from latentdiff.training.callbacks.refusal import not_fatal


class TensorBoardLogger(loggers.TensorBoardLogger):
    """One folder for all processes of a run. Every call is on disk at once: what a killed process leaves is whole.

    Where the disk refuses, TensorBoard's writer takes nothing more, and the rest of this process is missing.

    Args:
        save_dir: the run directory; holds the folder.
        name: of the folder.
    """

    def __init__(self, *, save_dir: str, name: str):
        super().__init__(save_dir=save_dir, name=name, version="", default_hp_metric=False)
        self._told: set[str] = set()

    @contextmanager
    def _written(self) -> Iterator[None]:
        with not_fatal(self.log_dir, told=self._told):
            yield
            self.experiment.flush()

    def go_on(self, batches_seen: int) -> None:
        """TensorBoard does not show what earlier files of the folder have of later batches: to its reader the step of a
        session's start is the first to be forgotten. (``purge_step`` of ``SummaryWriter`` would say so too, but
        Lightning makes one before the checkpoint is read.)"""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        with self._written():
            start = SessionLog(status=SessionLog.START)
            self.experiment.file_writer.add_event(Event(step=batches_seen + 1, session_log=start))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self._written():
            for name, value in metrics.items():
                self.experiment.add_scalar(name, value, step)

    def log_config(self, config: Mapping[str, object], environment: Mapping[str, object]) -> None:
        with self._written():
            for name, values in (("config", config), ("environment", environment)):
                indented = json.dumps(values, indent=2, default=str).replace("\n", "\n    ")
                self.experiment.add_text(name, "    " + indented, 0)

    def log_picture(self, name: str, path: Path, counters: Mapping[str, int]) -> None:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        with self._written():
            self.experiment.add_image(name, pixels, counters["batches_seen"], dataformats="HWC")

    def save(self) -> None:
        """Lightning's, after its own calls of ``log_metrics``: nothing waits to be written."""

    def finalize(self, status: str) -> None:
        with not_fatal(self.log_dir, told=self._told):
            super().finalize(status)

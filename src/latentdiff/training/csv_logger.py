"""Lightning's CSV logger for a disk that may be full."""

from __future__ import annotations

from pytorch_lightning import loggers

from latentdiff.training.callbacks.refusal import not_fatal


class CSVLogger(loggers.CSVLogger):
    """What the disk refuses waits for the next save; Lightning's own raises, also where it is closed after training.

    Args:
        save_dir: holds the folder ``name`` with a folder for each ``version``.
        name: of the folder.
        version: of the logs; None: the next that is free.
    """

    def __init__(self, *, save_dir: str, name: str, version: int | str | None = None):
        super().__init__(save_dir=save_dir, name=name, version=version)
        self._told: set[str] = set()

    def save(self) -> None:
        with not_fatal(self.log_dir, told=self._told):
            super().save()

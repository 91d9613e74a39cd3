"""Lightning's CSV logger for a disk that may be full, with one file where a run is resumed."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning import loggers

from latentdiff.training.callbacks.refusal import not_fatal
from latentdiff.training.record import lines_until


class CSVLogger(loggers.CSVLogger):
    """Each line is saved at once, and what the disk refuses waits for the next; Lightning's own saves every hundredth
    step, and raises, also where it is closed after training.

    Args:
        save_dir: the run directory; holds the folder ``name`` with a folder for each ``version``.
        name: of the folder.
        version: of the logs; None: the next that is free.
    """

    def __init__(self, *, save_dir: str, name: str, version: int | str | None = None):
        super().__init__(save_dir=save_dir, name=name, version=version, flush_logs_every_n_steps=1)
        self._told: set[str] = set()

    def go_on(self, batches_seen: int) -> None:
        """Begins the file again, with what ``metrics.jsonl`` has up to there: what stands may lack lines of a killed
        process, or have some that come again."""
        (Path(self.log_dir) / "metrics.csv").unlink(missing_ok=True)
        for counters, values in lines_until(Path(self.save_dir), batches_seen):
            self.experiment.log_metrics(
                {**values, "images_seen": counters["images_seen"]}, step=counters["batches_seen"]
            )
        self.save()

    def save(self) -> None:
        with not_fatal(self.log_dir, told=self._told):
            super().save()

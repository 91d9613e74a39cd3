"""Weights & Biases as a logger that cannot hold a training up."""

from __future__ import annotations

import base64
import importlib.util
import io
import logging
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from pytorch_lightning.loggers.logger import Logger

from latentdiff.config.errors import InputError
from latentdiff.training.run_loggers import Cell
from latentdiff.training.wandb_pipe import SAID, Pipe

_log = logging.getLogger(__name__)

WORKER = "latentdiff.training.wandb_worker"
ID_FILE = "wandb.id"
"""In the run directory: the same run goes on where a training does."""
MARGIN = 10.0
"""Seconds beyond both timeouts that the other program has for its own end."""


class WandbLogger(Logger):
    """Hands everything to ``wandb_worker``, a program of its own, and waits for it only at the end, for a limited time.

    W&B's history repeats ``metrics.jsonl``: one row for each of its lines, each line once, also where the run was
    resumed before lines that W&B has already (these stand as they were first made), or begun with another logger. A W&B
    that is not there, refuses, or is slow costs a warning; its run is then a local file for ``wandb sync``.

    Nothing of W&B is imported in this process, and nothing is started before ``go_on``, which rank 0 alone calls.

    Args:
        run_dir: holds ``wandb/`` and the run's id.
        project: None for "latentdiff".
        entity, group, tags, notes, job_type: as W&B shows them.
        name: None for the run directory's.
        offline: write a local file alone. The environment variable WANDB_MODE is heard too.
        artifacts: send the checkpoints ``last`` and ``best`` when training ends or is stopped.
        connect_timeout: seconds for W&B to answer; without an answer the run becomes an offline one.
        finish_timeout: seconds that the end of the training waits for what is still to be sent.

    Raises InputError where wandb is not installed.
    """

    def __init__(
        self,
        *,
        run_dir: str,
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        job_type: str = "train",
        tags: Sequence[str] = (),
        notes: str | None = None,
        offline: bool = False,
        artifacts: bool = False,
        connect_timeout: float = 20.0,
        finish_timeout: float = 60.0,
    ):
        super().__init__()
        if importlib.util.find_spec("wandb") is None:
            raise InputError("logger: wandb is not installed; pip install wandb, or choose logger=csv")
        if connect_timeout <= 0 or finish_timeout <= 0:
            raise InputError("logger.wandb: expected connect_timeout and finish_timeout above 0 seconds")
        self.run_dir = Path(run_dir)
        self.artifacts, self.offline = artifacts, offline
        self._timeouts = {"connect": connect_timeout, "finish": finish_timeout}
        self._settings = {
            "project": project or "latentdiff",
            "entity": entity,
            "name": name or self.run_dir.resolve().name,
            "group": group,
            "job_type": job_type,
            "tags": list(tags),
            "notes": notes,
            "dir": str(self.run_dir.resolve()),
        }
        self._pipe: Pipe | None = None

    @property
    def name(self) -> str:
        return self._settings["project"]

    @property
    def version(self) -> str | None:
        """The run's id, None before there is one."""
        file = self.run_dir / ID_FILE
        return file.read_text(encoding="utf-8").strip() if file.exists() else None

    @property
    def save_dir(self) -> str:
        return str(self.run_dir)

    def go_on(self, batches_seen: int) -> None:
        """Begins or continues the run. To be called before anything is logged, by one process."""
        self._start(batches_seen)

    def begin(self) -> None:
        """The same of a run without a history."""
        self._start(None)

    def _start(self, batches_seen: int | None) -> None:
        run_id = self.version
        if run_id is None:
            run_id = secrets.token_hex(4)
            (self.run_dir / ID_FILE).write_text(run_id + "\n", encoding="utf-8")
        self._pipe = Pipe(WORKER, hear=_heard)
        settings = {**self._settings, "id": run_id}
        first = {"settings": settings, "offline": self.offline, "timeouts": self._timeouts}
        self._pipe.send({**first, "batches_seen": batches_seen})

    def _call(self, call: str, **arguments: object) -> None:
        if self._pipe is not None:
            self._pipe.send({"call": call, **arguments})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """``metrics`` with ``images_seen`` among them; ``step``: batches seen."""
        values = dict(metrics)
        self._call("row", values=values, counters={"batches_seen": step, "images_seen": values.pop("images_seen")})

    def log_hyperparams(self, params: object, *args: object, **kwargs: object) -> None:
        """Lightning's: our modules have none (see ``log_config``)."""

    def log_config(self, config: Mapping[str, object], environment: Mapping[str, object]) -> None:
        self._call("config", values={**config, "environment": dict(environment)})

    def log_picture(self, name: str, path: Path, counters: Mapping[str, int]) -> None:
        self._call("pictures", paths={name: str(Path(path).resolve())}, counters=dict(counters))

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], counters: Mapping[str, int]
    ) -> None:
        cells = [[_sendable(cell) for cell in row] for row in rows]
        self._call("table", name=name, columns=list(columns), rows=cells, counters=dict(counters))

    def log_checkpoint(self, path: Path, aliases: Sequence[str], about: Mapping[str, object]) -> None:
        """Where ``artifacts`` are wanted: hard links to the files of the checkpoint ``path`` are what is sent, so that
        it may be replaced or removed meanwhile. Raises OSError where the disk cannot have them."""
        if not self.artifacts or self._pipe is None:
            return
        copy = (self.run_dir / "wandb" / "checkpoints" / f"{path.name}-{secrets.token_hex(4)}").resolve()
        shutil.copytree(path, copy, copy_function=os.link)
        self._call("checkpoint", path=str(copy), aliases=list(aliases), about=dict(about))

    def log_summary(self, values: Mapping[str, object]) -> None:
        self._call("summary", values=dict(values))

    def log_media(
        self, *, pictures: Mapping[str, Path], pages: Mapping[str, Path], tables: Mapping[str, Mapping[str, object]]
    ) -> None:
        """PNG and HTML files, and tables {"columns": [...], "rows": [[...]]}, outside any history."""
        files = [{name: str(path.resolve()) for name, path in each.items()} for each in (pictures, pages)]
        self._call("media", pictures=files[0], pages=files[1], tables=dict(tables))

    def finalize(self, status: str) -> None:
        """Waits until W&B has everything, at most ``finish_timeout`` seconds after it was reached or given up; the
        second time does nothing."""
        if self._pipe is None:
            return
        pipe, self._pipe = self._pipe, None
        end = {"call": "end", "exit_code": 0 if status == "success" else 1}
        code = pipe.close(sum(self._timeouts.values()) + MARGIN, end)
        if code not in (0, SAID):
            _log.warning("W&B has not everything of '%s'; metrics.jsonl has all values", self.run_dir)
        if code == 0 and pipe.lost:
            _log.warning("W&B was too slow for %d messages of '%s', which it does not have", pipe.lost, self.run_dir)


def _heard(line: str) -> None:
    if line.startswith("warning: "):
        _log.warning("%s", line.removeprefix("warning: "))
    else:
        _log.info("%s", line)


def _sendable(cell: Cell) -> object:
    if not isinstance(cell, Image.Image):
        return cell
    file = io.BytesIO()
    cell.save(file, "PNG")
    return {"png": base64.b64encode(file.getvalue()).decode()}

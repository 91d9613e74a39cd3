"""What W&B is told of a run: its calls, and how a run begins or goes on. Imports W&B."""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import wandb
from PIL import Image

from latentdiff.training.record import lines_until
from latentdiff.training.wandb_files import recorded

AXIS = "images_seen"
GRIDS = ("reconstructions", "samples")
"""Folders of a run directory, and what their pictures are logged as."""
FLUSH = 1.0
"""Seconds between writes of the local file: a machine that dies loses as much of it."""


class Recorder:
    """The calls, for one W&B run.

    A history row has one call's values and both counters. ``known`` says for each name up to which batch the history
    has it: a resumed training repeats the batches after its checkpoint, and what is there already is left out.
    """

    def __init__(self, run: wandb.Run, known: dict[str, int], step: int):
        self.run, self.known, self.step = run, known, step
        self.exit_code = 1  # of a training that does not say how it ended

    def row(self, values: Mapping[str, object], counters: Mapping[str, int]) -> None:
        batches = counters["batches_seen"]
        fresh = {name: value for name, value in values.items() if self.known.get(name, -1) < batches}
        if fresh:
            self.run.log({**fresh, **counters}, step=self.step, commit=True)
            self.step += 1
            self.known |= dict.fromkeys(fresh, batches)

    def pictures(self, paths: Mapping[str, str], counters: Mapping[str, int]) -> None:
        fresh = [name for name in paths if self.known.get(name, -1) < counters["batches_seen"]]
        self.row({name: wandb.Image(paths[name]) for name in fresh}, counters)

    def table(self, name: str, columns: list[str], rows: list[list], counters: Mapping[str, int]) -> None:
        self.row({name: wandb.Table(columns=columns, data=[[_cell(cell) for cell in row] for row in rows])}, counters)

    def config(self, values: Mapping[str, object]) -> None:
        self.run.config.update(values, allow_val_change=True)

    def summary(self, values: Mapping[str, object]) -> None:
        self.run.summary.update(values)

    def media(self, pictures: Mapping[str, str], pages: Mapping[str, str], tables: Mapping[str, Mapping]) -> None:
        found = {name: wandb.Image(path) for name, path in pictures.items()}
        found |= {name: wandb.Html(Path(path).read_text(encoding="utf-8")) for name, path in pages.items()}
        found |= {name: wandb.Table(columns=table["columns"], data=table["rows"]) for name, table in tables.items()}
        self.run.log(found)

    def checkpoint(self, path: str, aliases: list[str], about: Mapping[str, object]) -> None:
        """``path`` is this program's own: it is removed when W&B has it, and left for ``wandb sync``."""
        artifact = wandb.Artifact(f"checkpoint-{self.run.id}", type="model", metadata=dict(about))
        artifact.add_dir(path, policy="immutable", skip_cache=True)
        self.run.log_artifact(artifact, aliases=aliases)
        if not self.run.offline:
            artifact.wait()
            shutil.rmtree(path)

    def end(self, exit_code: int) -> None:
        self.exit_code = exit_code


def _cell(value: object) -> object:
    """A picture comes as {"png": base64}."""
    if isinstance(value, dict):
        return wandb.Image(Image.open(io.BytesIO(base64.b64decode(value["png"]))))
    return value


def begin(
    settings: Mapping[str, object], offline: bool, timeouts: Mapping[str, float], say: Callable[[str], None]
) -> wandb.Run:
    """The run, on the server, or in a local file where that cannot be reached or refuses.

    Args:
        settings: of ``wandb.init``.
        timeouts: seconds by "connect" and "finish".
    """
    ours = {
        "silent": True,
        "console": "off",
        "init_timeout": timeouts["connect"],
        "finish_timeout": timeouts["finish"],
        "x_stats_pid": os.getppid(),
        "x_transaction_log_flush_interval": FLUSH,
    }
    known = {name: value for name, value in ours.items() if name in wandb.Settings.model_fields}  # by wandb's version
    common = {**settings, "resume": "allow", "settings": wandb.Settings(**known)}
    if offline:
        return wandb.init(**common, mode="offline")
    place = Path(settings["dir"]) / "wandb"
    before = set(place.glob("run-*"))
    try:
        run = wandb.init(**common)
    except Exception as error:  # whatever W&B may raise
        wandb.teardown()  # its service would refuse the same run's id
        for empty in set(place.glob("run-*")) - before:
            shutil.rmtree(empty)
        run = wandb.init(**common, mode="offline")
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        say(
            f"warning: W&B cannot be reached ({reason}); this run is recorded in a local file, send it later with: "
            f"wandb sync {run.settings.sync_dir}"
        )
        return run
    if run.url:
        say(f"W&B: {run.url}")
    return run


def recorder(run: wandb.Run, run_dir: Path, batches_seen: int | None) -> Recorder:
    """That of a run which stands at ``batches_seen``: first it adds what the run directory has up to there and W&B has
    not, values and grids. None: of no training."""
    rows = [row for row in recorded(run_dir / "wandb", run.id) if run.offline or row["_step"] < run.starting_step]
    known: dict[str, int] = {}
    for row in rows:
        known |= {name: max(known.get(name, -1), row.get("batches_seen", -1)) for name in row}
    found = Recorder(run, known, step=max((row["_step"] + 1 for row in rows), default=run.starting_step))
    if batches_seen is None:
        return found
    for name, axis in ((AXIS, None), ("batches_seen", None), ("*", AXIS)):
        run.define_metric(name, step_metric=axis)
    for counters, values, pictures in _made_before(run_dir, batches_seen):
        found.row(values, counters)
        found.pictures(pictures, counters)
    return found


def _made_before(run_dir: Path, batches_seen: int) -> Iterator[tuple[dict[str, int], dict[str, float], dict[str, str]]]:
    """Counters, values and pictures of each line of the record; pictures are those of its batch, again and again."""
    for counters, values in lines_until(run_dir, batches_seen):
        grids = {name: run_dir / name / f"batch-{counters['batches_seen']:08d}.png" for name in GRIDS}
        yield counters, values, {name: str(path) for name, path in grids.items() if path.exists()}

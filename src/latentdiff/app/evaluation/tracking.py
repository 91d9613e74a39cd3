"""An evaluation's numbers in W&B, beside the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from latentdiff.app.processes import warn
from latentdiff.checkpoint import store
from latentdiff.config import allowlist
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build, load_config
from latentdiff.evaluation.report import flattened

if TYPE_CHECKING:
    from latentdiff.training.wandb_logger import WandbLogger

COLUMNS = ["metric", "value", "standard deviation"]
PLACE = ("project", "entity", "group")


def check_logger(cfg: DictConfig) -> None:
    """Raises InputError for a logger that evaluate.py does not write to."""
    from latentdiff.training.wandb_logger import WandbLogger

    for name, node in (cfg.logger or {}).items():
        if node is not None and not issubclass(allowlist.resolve(node._target_), WandbLogger):
            raise InputError(
                f"logger: '{name}' records a training; an evaluation's numbers are in results.json. Leave it out, or "
                "choose logger=wandb"
            )


def to_wandb(cfg: DictConfig, found: Mapping[str, object], where: Path) -> None:
    """One W&B run per logger, in project, entity and group of the checkpoint's training unless others are given: every
    number in its summary and in a table, the card as its configuration, and the PNG and HTML files in ``where``, and
    the curves, as media.

    To be called by one process, when all files stand: a W&B that fails costs a warning.

    Args:
        found: what results.json holds.
    """
    for name, node in (cfg.logger or {}).items():
        if node is not None:
            try:
                given = _without_none(OmegaConf.to_container(node, resolve=True))
                own = {"run_dir": str(where), "job_type": "evaluate"}
                logger = build(OmegaConf.create({**_of_training(cfg, name), **given, **own}))
                _put(logger, json.loads(json.dumps(found)), where)
            except (OSError, InputError) as error:
                warn(f"W&B did not take the results ({type(error).__name__}: {error}); they are in '{where}'")


def _of_training(cfg: DictConfig, logger: str) -> dict[str, object]:
    """Where W&B has, or would have, the training that made the checkpoint."""
    if cfg.checkpoint is None:
        return {}
    trained = load_config(store.resolve(cfg.checkpoint) / store.CONFIG)
    told = {key: OmegaConf.select(trained, f"logger.{logger}.{key}") for key in PLACE}
    return {"group": trained.get("experiment"), **_without_none(told)}


def _without_none(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _put(logger: WandbLogger, found: Mapping[str, Mapping], where: Path) -> None:
    logger.begin()
    try:
        logger.log_config({"card": found.get("card", {})}, found.get("card", {}).get("environment", {}))
        spread = dict(flattened(found.get("repeats", {}).get("sd", {})))
        rows = [[name, value, spread.get(name)] for name, value in _numbers(found)]
        logger.log_summary({name: value for name, value, _ in rows} | {f"sd.{name}": sd for name, sd in spread.items()})
        pictures = sorted([*where.glob("*.png"), *where.glob("curves/*.png")])
        logger.log_media(
            pictures={file.stem: file for file in pictures},
            pages={file.stem: file for file in sorted(where.glob("*.html"))},
            tables={"metrics": {"columns": COLUMNS, "rows": rows}},
        )
    finally:
        logger.finalize("success")


def _numbers(found: Mapping[str, Mapping]) -> list[tuple[str, object]]:
    """Of the results and of their controls; without lists."""
    every = [*flattened(found["results"]), *flattened(found.get("controls", {}), "controls.")]
    return [(name, value) for name, value in every if not isinstance(value, list)]

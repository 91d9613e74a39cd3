"""An evaluation's numbers in W&B, beside the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from latentdiff.app.processes import warn
from latentdiff.config import allowlist
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.evaluation.report import flattened

if TYPE_CHECKING:
    from pytorch_lightning.loggers import WandbLogger


def check_logger(cfg: DictConfig) -> None:
    """Raises InputError for a logger that evaluate.py does not write to."""
    from pytorch_lightning.loggers import WandbLogger

    for name, node in (cfg.logger or {}).items():
        if node is not None and not issubclass(allowlist.resolve(node._target_), WandbLogger):
            raise InputError(
                f"logger: '{name}' records a training; an evaluation's numbers are in results.json. Leave it out, or "
                "choose logger=wandb"
            )


def to_wandb(cfg: DictConfig, found: Mapping[str, object], where: Path) -> None:
    """One W&B run per logger: every number in its summary, the card as its configuration, and the PNG and HTML files in
    ``where``, and the curves, as media.

    To be called by one process, when all files stand: a W&B that fails costs a warning.

    Args:
        found: what results.json holds.
    """
    own = OmegaConf.merge(cfg, {"run_dir": str(where)})
    for node in (own.logger or {}).values():
        if node is not None:
            try:
                _put(build(node), json.loads(json.dumps(found)), where)
            except Exception as error:  # whatever W&B may raise: the results stand on disk
                warn(f"W&B did not take the results ({type(error).__name__}: {error}); they are in '{where}'")


def _put(logger: WandbLogger, found: Mapping[str, Mapping], where: Path) -> None:
    import wandb

    run = logger.experiment
    try:
        run.config.update({"card": found.get("card", {})})
        spread = found.get("repeats", {}).get("sd", {})
        parts = {"": found["results"], "controls.": found.get("controls", {}), "sd.": spread}
        for prefix, results in parts.items():
            for name, value in flattened(results, prefix):
                if not isinstance(value, list):
                    run.summary[name] = value
        pictures = [*where.glob("*.png"), *where.glob("curves/*.png")]
        media = {file.stem: wandb.Image(str(file)) for file in sorted(pictures)}
        media |= {file.stem: wandb.Html(file.read_text(encoding="utf-8")) for file in sorted(where.glob("*.html"))}
        if media:
            run.log(media)
    finally:
        run.finish()

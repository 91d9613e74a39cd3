"""What the jobs of a sweep are compared by: a name in metrics.jsonl, and whether more of it is better."""

from __future__ import annotations

import re

from omegaconf import DictConfig, OmegaConf

from latentdiff.config.errors import InputError
from latentdiff.config.faults import did_you_mean
from latentdiff.evaluation.curve import HIGHER

COMPARABLE = "val/loss_v"
"""Of stage two: the same for every path, prediction, law of t and weighting."""

PREFIXES = ("val/", "train/", "online/")
KNOWN = {
    "diffusion": ("val/loss", "val/loss_v", "val/loss_v_t0", "val/loss_v_t1", "val/loss_v_t2", "val/loss_v_t3"),
    "classifier": ("val/loss", "val/accuracy"),
}
"""All that a validation of these tasks gives; of a first stage it depends on its parts."""


def default_objective(cfg: DictConfig) -> tuple[str | None, bool]:
    """``val/loss_v`` of stage two, of the others what chooses their ``best``; and whether more is better."""
    if _kind(cfg) == "diffusion":
        return COMPARABLE, False
    saving = cfg.callbacks.get("checkpoints") or {}
    return saving.get("monitor"), bool(saving.get("maximize", False))


def is_maximized(name: str) -> bool:
    """As far as the name says: PSNR, SSIM, accuracies and the like are; all else is better lower."""
    return HIGHER.match(name.replace("/", ".")) is not None


def check_objective(name: str, cfg: DictConfig) -> None:
    """Raises InputError for a name that trainings of this configuration do not write."""
    if not name.startswith(PREFIXES):
        raise InputError(f"objective: expected a name in metrics.jsonl ({', '.join(PREFIXES)}...), got '{name}'")
    known = KNOWN.get(_kind(cfg), ())
    if known and re.match("val/", name) and name not in known:
        raise InputError(
            f"objective: no '{name}' is measured{did_you_mean(name, known)}\n  available: {', '.join(known)}"
        )
    if name.startswith("online/") and not OmegaConf.select(cfg, "callbacks.online.every"):
        raise InputError(
            f"objective: '{name}' is measured with callbacks.online.every=BATCHES alone; add it to overrides"
        )


def _kind(cfg: DictConfig) -> str:
    from latentdiff.app.run.preflight import kind_of

    return kind_of(cfg)

"""Evaluations that stand already: parts of a larger one are not made again, and no other takes the place of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from latentdiff import durable
from latentdiff.app.evaluation.one_evaluation import protocol_of
from latentdiff.app.evaluation.parts import Parts
from latentdiff.app.evaluation.work_files import FOLDER, PROTOCOL
from latentdiff.app.ranks import Ranks
from latentdiff.config.errors import InputError
from latentdiff.evaluation.compare import RESULTS, differences, read_results

PLACES = ("checkpoint", "pipeline", "images", "path")
"""Keys of a model's identity that say where it lies, beside those that say which it is."""


def complete(place: Path) -> bool:
    """Whether the folder holds an evaluation, and no work beside it that is not cleared away yet."""
    return (place / RESULTS).is_file() and not (place / FOLDER / PROTOCOL).exists()


def kept(place: Path, cfg: DictConfig, parts: Parts, ranks: Ranks) -> dict | None:
    """What the folder's results.json holds, None where it is not ``complete``. Collective.

    Raises InputError where it is of another protocol, reference or model; names the differences.
    """
    return ranks.broadcast(_read(place, cfg, parts) if ranks.first else None)


def remove_complete(place: Path) -> None:
    """Makes room for another evaluation."""
    if complete(place):
        durable.remove(place)


def _read(place: Path, cfg: DictConfig, parts: Parts) -> dict | None:
    if not complete(place):
        return None
    found = read_results(place)
    card = found["card"]
    stands = _card(card["protocol"], card["model"], card["config"].get("values", {}).get("save_samples"))
    asked = _card(protocol_of(cfg, *parts), parts.subject.identity, cfg.save_samples)
    cards = json.loads(json.dumps([stands, asked]))
    if differing := [each for part in asked for each in differences(cards, part)]:
        listed = "\n".join(f"  {each}" for each in differing)
        raise InputError(
            f"run_dir: '{place}' holds another evaluation than the one asked for (there | here):\n{listed}\n"
            "give another run_dir, or remove that folder"
        )
    return found


def _card(protocol: Mapping, model: Mapping, save_samples: str | None) -> dict[str, dict]:
    """All that decides what a finished evaluation's folder holds, but for controls and report."""
    return {"protocol": dict(protocol), "model": _placeless(model), "config": {"save_samples": save_samples}}


def _placeless(model: Mapping) -> dict:
    own = {key: value for key, value in model.items() if key not in PLACES}
    return {key: _placeless(value) if isinstance(value, Mapping) else value for key, value in own.items()}

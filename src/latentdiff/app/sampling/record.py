"""What images were made of and by: the file beside them, their PNG's text, and how they are made again from either."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image, UnidentifiedImageError

import latentdiff
from latentdiff import durable
from latentdiff.app.evaluation.model_identity import model_identity
from latentdiff.app.evaluation.repeat import PRECISIONS
from latentdiff.app.generate import Generator, overlaid
from latentdiff.app.ranks import Ranks
from latentdiff.app.sampling.images import TEXT_KEY, Wanted, image_size
from latentdiff.app.sampling.prompts import COLUMNS, Row
from latentdiff.app.sampling.request import Reads, Request
from latentdiff.app.schema import ROOTS, SampleConfig
from latentdiff.config.compose import reason_of
from latentdiff.config.errors import InputError
from latentdiff.config.validate import validate
from latentdiff.evaluation.card import source_revision
from latentdiff.evaluation.report import flattened

FILE = "samples.json"
SCHEMA = 1
LONGEST = 60
"""Letters of a value in a message."""
BESIDE_CARD = (
    "card",
    "checkpoint",
    "first_stage.checkpoint",
    "run_dir",
    "trainer",
    "paths",
    "trajectory",
    "print_config",
)
"""What may be given beside ``card``: where things lie now, what computes, and what is also shown. All else is the
card's."""
SETTINGS = ("size", "strength", "paste", "weights", "batch_size")
NODES = ("sampler", "guidance", "repaint", "first_stage")
TOLD = ("checkpoint", "model.checkpoint", "model.first_stage.path", "guidance.checkpoint", "code", "device", "settings")
"""Keys of a record that two runs of the same images may differ in: where things lay, what computed, and the settings,
of which everything that matters is told by the parts themselves."""


def made_by(cfg: DictConfig, generator: Generator, path: Path, request: Request, reads: Reads) -> dict[str, object]:
    """What is the same for all images, JSON-ready. ``settings`` are keys of sample.py, for ``repeated``."""
    pipeline, repaint = generator.pipeline, request.repaint_for(reads)
    sampler = overlaid(cfg.sampler, generator.config.sampler, "solver")
    guidance = overlaid(cfg.guidance, generator.config.guidance, "_target_")
    nodes = (sampler, guidance, cfg.repaint, cfg.first_stage)
    return {
        "schema": SCHEMA,
        "checkpoint": str(path),
        "model": model_identity(path, generator.config, cfg.weights),
        "size": list(image_size(pipeline)),
        **pipeline.describe(),
        **({} if request.strength is None else {"strength": request.strength}),
        **({} if repaint is None else {"repaint": vars(repaint)}),
        **({"paste": request.paste} if request.has("mask") else {}),
        "code": {
            "latentdiff": latentdiff.__version__,
            "revision": source_revision(Path(latentdiff.__file__).parent),
            "torch": torch.__version__,
        },
        "settings": {
            **{key: OmegaConf.to_container(cfg)[key] for key in SETTINGS},
            **{key: OmegaConf.to_container(node, resolve=True) for key, node in zip(NODES, nodes, strict=True)},
        },
    }


def entries(wanted: list[Wanted], batch_size: int) -> list[dict[str, object]]:
    """What differs from image to image, JSON-ready, in their order.

    ``batch`` is the image's place among those that are made together, and their count: rounding may depend on it.
    """
    found = []
    for i, one in enumerate(wanted):
        count = min(batch_size, len(wanted) - i // batch_size * batch_size)
        name = f"{i:04d}-seed{one.seed}.png"
        found.append({"file": name, **one.about(), "batch": [i % batch_size, count]})
    return found


def take_up(where: Path, record: Mapping[str, object], ranks: Ranks) -> int:
    """Puts ``samples.json`` into the run directory, or finds the same there, and says how many of its images stand.
    Collective; rank 0's answer counts.

    Raises InputError where the directory holds images of another making, with the first difference.
    """
    standing = [each["file"] for each in record["images"] if ranks.first and (where / each["file"]).exists()]
    if ranks.first:
        file = where / FILE
        if file.exists():
            if found := _difference(read_record(file, "run_dir"), record):
                raise InputError(
                    f"run_dir: '{where}' holds images made otherwise: {found}; give another, or the same command to "
                    "make what is missing"
                )
            durable.tidy(where)
        elif standing:
            raise InputError(
                f"run_dir: '{where}' holds a '{standing[0]}' and no {FILE} that says of what; give another"
            )
        else:
            durable.put_file(file, json.dumps(record, indent=1, ensure_ascii=False).encode())
    ranks.barrier()
    return len(standing)


def repeated(cfg: DictConfig) -> tuple[DictConfig, list[Row]]:
    """The configuration of the images in ``cfg.card``, with what may be given beside it, and a row of each.

    Raises InputError where something else was given too, and for a file that does not say how its images were made.
    """
    given = [line.partition("=")[0].lstrip("+~") for line in HydraConfig.get().overrides.task]
    if other := [key for key in given if not any(key == own or key.startswith(f"{own}.") for own in BESIDE_CARD)]:
        raise InputError(
            f"{other[0]}: the images are made again as they were; beside card= only {', '.join(BESIDE_CARD[1:])} can "
            "be given"
        )
    card = read_record(cfg.card, "card")
    again = OmegaConf.merge(OmegaConf.structured(SampleConfig), OmegaConf.to_container(cfg, resolve=True))
    try:
        if "${" in json.dumps(card["settings"]):
            raise InputError(f"card: the settings in '{cfg.card}' hold interpolations; a card has plain values")
        if damaged := [key for key in NODES if not isinstance(card["settings"][key], dict)]:
            raise KeyError(damaged[0])
        for key in (*SETTINGS, *NODES):
            if key not in given and f"{key}.checkpoint" not in given:
                _put(again, key, card["settings"][key], cfg.card)
        again.checkpoint = cfg.checkpoint or card["checkpoint"]
        if "trainer.precision" not in given:
            again.trainer.precision = PRECISIONS[card["precision"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"card: '{cfg.card}' has no {error} as sample.py writes it; it cannot be used") from error
    root = ROOTS["sample"]
    if faults := validate(again, injected=root.injected, runtime=root.runtime):
        raise InputError("\n".join(f"card: '{cfg.card}': {fault}" for fault in faults))
    rows = [{key: image[key] for key in COLUMNS if key in image} for image in card["images"]]
    return again, [Row(f"card: image {i}", row) for i, row in enumerate(rows)]


def _put(cfg: DictConfig, key: str, value: object, card: str) -> None:
    try:
        OmegaConf.update(cfg, key, value, merge=False)
    except OmegaConfBaseException as error:
        raise InputError(f"card: '{card}': settings.{key}: {reason_of(error)}") from error


def check_repeated(card: str, record: dict) -> None:
    """Raises InputError where ``record`` is not what ``card`` says. An image alone gets its name and its place in its
    old batch."""
    before, images = read_record(card, "card"), record["images"]
    if len(before["images"]) == 1:
        images[0] |= _place(before["images"][0], card, record["settings"]["batch_size"])
    if found := _difference(before, record):
        raise InputError(f"this is not what '{card}' was made by: {found}")


def _place(image: Mapping[str, object], card: str, batch_size: int) -> dict[str, object]:
    """File and batch of an image in a card, which may be a stranger's."""
    file, batch = image.get("file"), image.get("batch")
    numbers = isinstance(batch, list) and len(batch) == 2 and all(type(number) is int for number in batch)
    named = isinstance(file, str) and re.fullmatch(r"\d+-seed-?\d+\.png", file)
    if not (named and numbers and 0 <= batch[0] < batch[1] <= batch_size):
        raise InputError(f"card: '{card}' has no file or batch as sample.py writes them; it cannot be used")
    return {"file": file, "batch": batch}


def read_record(path: str | Path, key: str) -> dict:
    """Of a ``samples.json``, or of a PNG that sample.py wrote.

    Raises InputError, which names ``key``, for anything else.
    """
    try:
        if Path(path).suffix == ".png":
            with Image.open(path) as opened:
                text = opened.text[TEXT_KEY]
        else:
            text = Path(path).read_text(encoding="utf-8")
        found = json.loads(text)
        images, schema = found["images"], found["schema"]
        whole = schema == SCHEMA and images and all(isinstance(image, dict) for image in images)
    except UnidentifiedImageError as error:
        raise InputError(f"{key}: '{path}' is no PNG") from error
    except OSError as error:
        raise InputError(f"{key}: '{path}' cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise InputError(
            f"{key}: '{path}' does not say how its images were made; expected a {FILE} or a PNG that this version's "
            "sample.py wrote"
        )
    return found


def _difference(before: Mapping[str, object], now: Mapping[str, object]) -> str | None:
    """The first key that decides over the images and differs, with both values."""
    there, here = (dict(flattened(_by_file(json.loads(json.dumps(record))))) for record in (before, now))
    for key in {**there, **here}:
        told = any(key == own or key.startswith(f"{own}.") for own in TOLD)
        if not told and there.get(key) != here.get(key):
            return f"{key} = {_short(there.get(key))} there, {_short(here.get(key))} here"
    return None


def _by_file(record: dict) -> dict:
    return {**record, "images": {image.get("file"): image for image in record["images"]}}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."

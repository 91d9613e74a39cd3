"""``latentdiff shards stats``: what is in the shards, as tables, as JSON, and as a contact sheet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from latentdiff.config.errors import InputError
from latentdiff.data.decode import BrokenSampleError
from latentdiff.data.labels import Labels
from latentdiff.data.sample import read_sample
from latentdiff.data.shard_set import ShardSet
from latentdiff.data.shard_statistics import ShardStatistics, shard_statistics
from latentdiff.durable import new_file
from latentdiff.evaluation.grid import save_grid

_SHORT_SIDES = (64, 128, 256, 512, 1024)
_ASPECTS = {"1:2": 0.5, "3:4": 0.75, "4:3": 4 / 3, "2:1": 2.0}
_CLASSES_SHOWN = 20
_CELL, _COLUMNS, _CAPTION = 144, 8, 80
"""Edge of a picture on the contact sheet in pixels, pictures in a row, characters of a caption."""
_MAX_PIXELS = 64_000_000


def show(
    shards: ShardSet,
    *,
    out: str | Path | None = None,
    images: int = 48,
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Prints the tables; with ``out`` writes ``stats.json`` and ``contact_sheet.png`` there and returns their paths.

    The sheet shows ``images`` samples spread evenly over the set. Raises InputError where that is less than 1.
    """
    if images < 1:
        raise InputError(f"--images: expected at least 1, got {images}")
    found = shard_statistics(shards, progress)
    summary = summarised(found)
    for table in _tables(summary):
        Console().print(table)
    if out is None:
        return []
    report, sheet = Path(out) / "stats.json", Path(out) / "contact_sheet.png"
    with new_file(report) as staged:
        staged.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    pictures, captions = _spread(shards, images)
    text = f"{len(pictures)} of {len(shards)} samples, spread evenly"
    save_grid(sheet, pictures, captions, columns=_COLUMNS, text=text)
    return [report, sheet]


def summarised(found: ShardStatistics) -> dict[str, dict[str, object]]:
    """Table -> what -> number, as printed and written."""
    short, aspect = found.sizes.min(axis=1), found.sizes[:, 1] / found.sizes[:, 0]
    return {
        "set": {"samples": found.samples, "shards": found.shards, "bytes of files": found.bytes},
        "pixels (min / median / max)": {
            "height": _spans(found.sizes[:, 0]),
            "width": _spans(found.sizes[:, 1]),
            "short side": _spans(short),
            "unreadable": found.unreadable,
        },
        "images by short side": _by_range(short, _SHORT_SIDES, [str(edge) for edge in _SHORT_SIDES]),
        "images by width : height": _by_range(aspect, list(_ASPECTS.values()), list(_ASPECTS)),
        "captions": {
            "samples without": found.without_caption,
            "samples with one used before": found.repeated,
            "wordings in all": found.wordings,
            "characters (min / median / max)": _spans(found.characters),
            "words (min / median / max)": _spans(found.words),
            **({"damaged .json": found.broken_json} if found.broken_json else {}),
        },
        "samples by class (.cls)": {
            **dict(sorted(found.labels.items(), key=lambda item: (-item[1], item[0]))),
            "(none)": found.samples - found.labels.total(),
        },
    }


def _spans(values: Sequence[int] | np.ndarray) -> list[float]:
    """[min, median, max]; of nothing nothing."""
    return [int(min(values)), float(np.median(values)), int(max(values))] if len(values) else []


def _shown(number: float) -> str:
    return f"{number:.0f}" if float(number).is_integer() else f"{number:.1f}"


def _by_range(values: np.ndarray, edges: Sequence[float], names: Sequence[str]) -> dict[str, int]:
    ranges = [f"below {names[0]}", *(f"{a} to {b}" for a, b in pairwise(names)), f"{names[-1]} and more"]
    counts = np.bincount(np.digitize(values, edges), minlength=len(ranges))
    return {name: int(count) for name, count in zip(ranges, counts)}


def _tables(summary: dict[str, dict[str, object]]) -> Iterable[Table]:
    for title, entries in summary.items():
        table = Table(title, "", min_width=48)
        table.columns[1].justify = "right"
        for name, value in list(entries.items())[:_CLASSES_SHOWN]:
            table.add_row(name, " / ".join(map(_shown, value)) if isinstance(value, list) else str(value))
        if len(entries) > _CLASSES_SHOWN:
            table.add_row(f"and {len(entries) - _CLASSES_SHOWN} more", "")
        yield table


def _spread(shards: ShardSet, count: int) -> tuple[torch.Tensor, list[str]]:
    """uint8 (n, 3, cell, cell), each image whole on white, and a caption or what is wrong for each."""
    pictures, captions = [], []
    for index in np.unique(np.linspace(0, len(shards) - 1, min(count, len(shards))).astype(np.int64)).tolist():
        cell = Image.new("RGB", (_CELL, _CELL), (255, 255, 255))
        try:
            sample = read_sample(shards, index, _MAX_PIXELS, Labels())
            image = Image.fromarray(np.ascontiguousarray(sample.pixels))
            scale = _CELL / max(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            image = image.resize(size, Image.Resampling.BICUBIC)
            cell.paste(image, ((_CELL - image.width) // 2, (_CELL - image.height) // 2))
            text = sample.captions[0] if sample.captions else "(no caption)"
            captions.append(text if len(text) <= _CAPTION else f"{text[: _CAPTION - 3]}...")
        except BrokenSampleError as error:
            captions.append(f"broken: {error}"[:_CAPTION])
        pictures.append(torch.from_numpy(np.array(cell)).permute(2, 0, 1))
    return torch.stack(pictures), captions

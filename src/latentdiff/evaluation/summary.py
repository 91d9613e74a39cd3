"""Evaluations of several models as one table: each number beside the same one of images that the model did not make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from latentdiff.shapes.checker import OBJECT_ATTRIBUTES

Results = Mapping[str, object]


@dataclass(frozen=True)
class Measure:
    """A number of the results of the metric that the configurations call ``metric``."""

    metric: str
    title: str
    value: Callable[[Results], object]
    """KeyError where the results have none."""
    digits: int = 3


@dataclass(frozen=True)
class Row:
    """One number of one model. ``values``: a column's name -> the number, where there is one."""

    model: str
    measure: Measure
    values: Mapping[str, float]


def _attributes(results: Results) -> float:
    return sum(results[name] for name in OBJECT_ATTRIBUTES) / len(OBJECT_ATTRIBUTES)


MEASURES = (
    Measure("reconstruction", "PSNR, dB", lambda r: r["psnr"], digits=2),
    Measure("reconstruction", "SSIM", lambda r: r["ssim"]),
    Measure("captions", "attributes right, one object", lambda r: _attributes(r["one_object"])),
    Measure("captions", "attributes right, two objects", lambda r: _attributes(r["two_objects"])),
    Measure("captions", "shapes right, one object", lambda r: r["one_object"]["shape"]),
    Measure("labels", "shape of the class is there", lambda r: r["accuracy"]),
    Measure("maps", "mean IoU with the map", lambda r: r["miou"]),
    Measure("known", "PSNR of the known pixels, dB", lambda r: r["psnr"], digits=2),
    Measure("hole", "attributes right in the hole", _attributes),
    Measure("hole", "shapes right in the hole", lambda r: r["shape"]),
    Measure("low_resolution", "PSNR of the image reduced again, dB", lambda r: r["low_res_psnr"], digits=2),
    Measure("low_resolution", "PSNR of the image, dB", lambda r: r["psnr"], digits=2),
    Measure("frechet", "Fréchet distance", lambda r: next(iter(r.values()))),
)

OWN, SHUFFLED = "samples", "shuffled"
COLUMNS = {
    OWN: "samples",
    SHUFFLED: "shuffled",
    "reconstructions": "reconstructions",
    "bicubic": "bicubic",
    "gaussian": "Gaussian latents",
    "training_images": "training images",
}
"""Of the table, by the names of the controls in results.json."""


def rows(model: str, found: Results) -> Iterator[Row]:
    """The table's rows of one results.json, ``{"results": ..., "controls": ...}``; metrics without a measure are left
    to the file."""
    results, controls = found["results"], found.get("controls", {})
    for measure in MEASURES:
        own = results.get(measure.metric)
        if own is None:
            continue
        columns = {OWN: own, SHUFFLED: own.get("shuffled"), "reconstructions": own.get("reconstructions")}
        columns |= {name: control[measure.metric] for name, control in controls.items() if measure.metric in control}
        values = {name: _value(measure, each) for name, each in columns.items() if isinstance(each, Mapping)}
        values = {name: value for name, value in values.items() if value is not None}
        if OWN in values:
            yield Row(model, measure, values)


def table(of: list[Row]) -> str:
    """In Markdown, with the columns of ``COLUMNS`` in which there is a number."""
    used = [name for name in COLUMNS if any(name in row.values for row in of)]
    lines = [
        ["model", "measure", *(COLUMNS[name] for name in used)],
        ["---", "---", *("---:" for _ in used)],
    ]
    for before, row in zip([None, *of], of):
        model = "" if before is not None and before.model == row.model else row.model
        numbers = [f"{row.values[name]:.{row.measure.digits}f}" if name in row.values else "" for name in used]
        lines.append([model, row.measure.title, *numbers])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _value(measure: Measure, results: Results) -> float | None:
    try:
        value = measure.value(results)
    except (KeyError, StopIteration):
        return None
    return float(value) if isinstance(value, (int, float)) else None

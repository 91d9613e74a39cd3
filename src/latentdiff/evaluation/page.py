"""``report.html``: an evaluation as one page that loads nothing, to be read, sent and kept."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image
from torch import Tensor

from latentdiff.durable import new_file
from latentdiff.evaluation.neighbours import Neighbours
from latentdiff.evaluation.page_style import PAIR_GAP, STYLE
from latentdiff.evaluation.report import flattened, shown
from latentdiff.evaluation.summary import COLUMNS, OWN

LEAST_SIDE = 128
"""Pixels that smaller images are shown at, enlarged without smoothing by a whole factor."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""No script runs and nothing is fetched, whatever a caption says."""
INSIDE = ("shuffled", "reconstructions")
"""Controls that stand inside a metric's own results."""
_SECTIONS = ("model", "protocol", "observed", "controls", "environment")


@dataclass(frozen=True)
class Pictures:
    """Images, uint8 (n, 3, H, W), each with its text where there are ``texts``, and right of what ``beside`` names,
    uint8 (n, 3, h, w) each: its original, or what it was made from."""

    images: Tensor
    texts: Sequence[str] | None = None
    beside: Sequence[tuple[str, Tensor]] = ()


def write_page(
    path: str | Path,
    *,
    title: str,
    found: Mapping[str, object],
    command: str,
    samples: Pictures | None = None,
    neighbours: Neighbours | None = None,
    points: Mapping[str, Mapping[str, object]] | None = None,
    curves: Sequence[Path] = (),
) -> None:
    """The page of one evaluation or sweep; it appears whole or not at all.

    Args:
        found: what results.json holds; "card" may be absent.
        command: repeats it.
        neighbours: of the first of ``samples``.
        points: of a sweep: name of a point -> dotted name -> number.
        curves: SVG or PNG files, which are put into the page.
    """
    card = found.get("card", {})
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{escape(_subtitle(card))}</p>',
        _numbers(found),
        _points(points) if points else "",
        *(_curve(curve) for curve in curves),
        "" if samples is None else _samples(samples),
        "" if samples is None or neighbours is None else _neighbours(samples, neighbours),
        f"<h2>To repeat it</h2><pre>{escape(command)}</pre>",
        _card(card) if card else "",
    ]
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, parts))
        + "\n</main>\n</body>\n</html>\n"
    )
    with new_file(path) as staged:
        staged.write_text(text, encoding="utf-8")


def _subtitle(card: Mapping) -> str:
    """Whose numbers these are, in a line."""
    model, protocol = card.get("model", {}), card.get("protocol", {})
    said = [str(model[key]) for key in ("checkpoint", "kind", "weights") if key in model]
    if "samples" in protocol:
        said.append(f"{protocol['samples']['count']} images")
    steps = protocol.get("generation", {}).get("steps")
    return " · ".join(said if steps is None else [*said, f"{steps} steps"])


def _numbers(found: Mapping[str, object]) -> str:
    """A row per number, those of a metric together, a column per control."""
    columns = _columns(found)
    if not columns.get(OWN):
        return ""
    spread = dict(_plain(found.get("repeats", {}).get("sd", {})))
    head = "".join(f'<th class="number" scope="col">{escape(COLUMNS.get(name, name))}</th>' for name in columns)
    metrics: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        metrics.setdefault(name.partition(".")[0], []).append(name)
    rows = []
    for metric, names in metrics.items():
        rows.append(f'<tr class="metric"><th colspan="{len(columns) + 1}" scope="rowgroup">{escape(metric)}</th></tr>')
        for name in names:
            own = _cell(columns[OWN].get(name), spread.get(name), own=True)
            others = "".join(_cell(column.get(name)) for control, column in columns.items() if control != OWN)
            title = escape(name.partition(".")[2] or name)
            rows.append(f'<tr><th scope="row">{title}</th>{own}{others}</tr>')
    note = '<p class="quiet">± is the standard deviation of one evaluation over its repeats.</p>' if spread else ""
    return (
        f'<h2>Numbers</h2><div class="wide"><table><thead><tr><th scope="col">number</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def _columns(found: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Name of a column -> dotted name -> number."""
    results = found.get("results", {})
    own = {metric: _without(values, INSIDE) for metric, values in results.items()}
    columns = {OWN: dict(_plain(own))}
    for inside in INSIDE:
        of_metrics = {m: v[inside] for m, v in results.items() if isinstance(v, Mapping) and inside in v}
        columns[inside] = dict(_plain(of_metrics))
    for name, control in found.get("controls", {}).items():
        whole = {metric: _without(values, INSIDE) for metric, values in control.items()}
        columns[name] = {**columns.get(name, {}), **dict(_plain(whole))}
    return {name: numbers for name, numbers in columns.items() if numbers or name == OWN}


def _points(points: Mapping[str, Mapping[str, object]]) -> str:
    """A row per point of a sweep, a column per number."""
    names = dict.fromkeys(name for numbers in points.values() for name in numbers)
    head = "".join(f'<th class="number" scope="col">{escape(name)}</th>' for name in names)
    rows = []
    for point, numbers in points.items():
        cells = "".join(_cell(numbers.get(name)) for name in names)
        rows.append(f'<tr><th scope="row">{escape(point)}</th>{cells}</tr>')
    return (
        f'<h2>Points</h2><div class="wide"><table><thead><tr><th scope="col">point</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _without(values: object, names: Sequence[str]) -> object:
    return {k: v for k, v in values.items() if k not in names} if isinstance(values, Mapping) else values


def _plain(results: Mapping) -> Iterator[tuple[str, object]]:
    """The numbers; lists are left to results.json."""
    return ((name, value) for name, value in flattened(results) if not isinstance(value, (list, tuple)))


def _cell(value: object, spread: object = None, *, own: bool = False) -> str:
    text = "" if value is None else shown(value)
    if isinstance(spread, (int, float)):
        text += f" ± {shown(float(spread))}"
    return f'<td class="number{" own" if own else ""}">{escape(text)}</td>'


def _samples(samples: Pictures) -> str:
    figures = []
    for i, image in enumerate(samples.images):
        text = samples.texts[i] if samples.texts else ""
        pictures = [_picture(beside[i], name) for name, beside in samples.beside]
        pair = "".join([*pictures, _picture(image, text or f"sample {i}")])
        width = _width(image) * (len(pictures) + 1) + PAIR_GAP * len(pictures)
        figures.append(_figure(f'<div class="pair">{pair}</div>', text, width))
    names = ", ".join(name for name, _ in samples.beside)
    legend = f'<p class="quiet">From left to right: {escape(names)}, result.</p>' if names else ""
    return f'<h2>The first {len(samples.images)} images</h2>{legend}<div class="grid">{"".join(figures)}</div>'


def _neighbours(samples: Pictures, found: Neighbours) -> str:
    rows = []
    for i, (sample, images, distances) in enumerate(zip(samples.images, found.images, found.distances)):
        near = (
            _figure(_picture(one, "training image"), f"{far:.3f}", _width(one))
            for one, far in zip(images, distances.tolist())
        )
        own = _figure(_picture(sample, f"sample {i}"), f"sample {i}", _width(sample))
        rows.append(f'<div class="row">{own}{"".join(near)}</div>')
    return (
        f'<h2>Nearest training images</h2><p class="quiet">Each sample beside the nearest of {found.searched} training '
        f"images, with the distance between their features ({escape(found.features)}). A model that repeats what it "
        f'was trained on shows here.</p><div class="rows">{"".join(rows)}</div>'
    )


def _figure(inside: str, text: str, width: int) -> str:
    caption = f"<figcaption>{escape(text)}</figcaption>" if text else ""
    return f'<figure style="max-width:{width}px">{inside}{caption}</figure>'


def _picture(image: Tensor, text: str) -> str:
    """uint8 (3, H, W) as a PNG in the page."""
    file = io.BytesIO()
    Image.fromarray(image.cpu().permute(1, 2, 0).numpy()).save(file, format="PNG")
    small = ' class="small"' if image.shape[-1] < LEAST_SIDE else ""
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return f'<img{small} src="{source}" alt="{escape(text)}" width="{_width(image)}">'


def _width(image: Tensor) -> int:
    """In the page, pixels."""
    width = image.shape[-1]
    return width * max(1, LEAST_SIDE // width)


def _curve(path: Path) -> str:
    kind = "svg+xml" if path.suffix == ".svg" else "png"
    source = f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return f'<h2>{escape(path.stem.replace("_", " "))}</h2><img class="curve" src="{source}" alt="{escape(path.stem)}">'


def _card(card: Mapping[str, object]) -> str:
    sections = []
    for name in _SECTIONS:
        if card.get(name):
            rows = "".join(
                f'<tr><th scope="row">{escape(key)}</th><td><code>{escape(_value(value))}</code></td></tr>'
                for key, value in flattened(card[name])
            )
            sections.append(f"<h3>{escape(name)}</h3><table><tbody>{rows}</tbody></table>")
    if "wall_seconds" in card:
        sections.append(f'<p class="quiet">In {card["wall_seconds"]} s.</p>')
    if "config" in card:
        text = escape(json.dumps(card["config"], indent=2))
        sections.append(f"<details><summary>Configuration</summary><pre>{text}</pre></details>")
    return f"<details><summary>How these numbers were obtained</summary>{''.join(sections)}</details>"


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)

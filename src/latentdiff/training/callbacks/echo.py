"""The line about a training where there is no progress bar: in a log file, a notebook."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta

MATTERS = ("train/loss", "train/nll", "train/lr", "train/grad_norm")
"""Of a line that is training's; ``metrics.jsonl`` has the rest."""
LONGEST = 100
"""Characters, up to which other lines say what they have."""


def line(batches_seen: int, values: Mapping[str, float], seconds_left: float = math.inf) -> str:
    """``seconds_left`` until the end of the run; infinite: not known."""
    chosen = {name: values[name] for name in MATTERS if name in values} or values
    said = [f"{name} {value:.4g}" for name, value in chosen.items() if name != "images_per_second"]
    if "images_per_second" in values:
        said.append(f"{values['images_per_second']:.3g} images/s")
    if math.isfinite(seconds_left):
        said.append(f"{timedelta(seconds=round(seconds_left))} left")
    text = f"batch {batches_seen}: {said[0]}" if said else f"batch {batches_seen}"
    for each in said[1:]:
        if len(text) + 2 + len(each) <= LONGEST:
            text += f"  {each}"
    return text

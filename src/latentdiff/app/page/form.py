"""What the demo page's fields hold, as the request of sample.py that makes the same image."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from PIL import Image, ImageChops

from latentdiff.app.sampling.request import FILES, Reads, Scene
from latentdiff.config.errors import InputError
from latentdiff.config.quoting import quote_overrides

MOST = 16
"""Images at once: the batch size of sample.py, so that both make the same batches."""
MOST_STEPS = 1000
LARGEST_SEED = 2**53
"""Up to which a browser's numbers are whole."""
OWN = "the checkpoint's own"

NOISE, IMAGE, HOLE = "Noise", "An image", "A hole in an image"
STARTS: Mapping[str, tuple[str, ...]] = {NOISE: (), IMAGE: ("image", "strength"), HOLE: ("drawing",)}
"""What models that read no picture of their own begin with -> the fields that it needs."""


@dataclass(frozen=True)
class Form:
    """Values of the page's fields; None where a field is empty or the model reads none."""

    start: str = NOISE
    prompt: str | None = None
    negative_prompt: str | None = None
    label: int | None = None
    numbers: float | None = None
    image: str | None = None
    """Paths of uploaded files, likewise ``map``."""
    map: str | None = None
    drawing: Mapping[str, Any] | None = None
    """Of an image editor: paths ``background`` and ``layers``."""
    strength: float = 0.7
    seed: int | None = 0
    count: int = 4
    sampler: str = OWN
    steps: int | None = None
    scales: Mapping[str, float] = field(default_factory=dict)
    """Keys of the configuration, e.g. ``guidance.scale``."""

    def shown(self, reads: Reads) -> tuple[str, ...]:
        """The pictures, and what goes with them, that the images are made from. Raises InputError for no start."""
        if self.start not in STARTS:
            raise InputError(f"Start: there is no '{self.start}'; choose one of {', '.join(STARTS)}")
        return (*pictures_read(reads), *(STARTS[self.start] if may_start(reads) else ()))

    def settings(self, reads: Reads) -> list[str]:
        """Overrides of sample.py: everything but texts and files. Raises InputError for numbers that cannot be used."""
        seed, steps = self.seed, self.steps
        if seed is None or not 0 <= seed <= LARGEST_SEED - MOST:
            raise InputError(f"Seed: expected a whole number of at least 0, got {'nothing' if seed is None else seed}")
        if not 1 <= self.count <= MOST:
            raise InputError(f"Images: expected 1 to {MOST}, got {self.count}")
        if steps is None or not 1 <= steps <= MOST_STEPS:
            raise InputError(f"Steps: expected 1 to {MOST_STEPS}, got {'nothing' if steps is None else steps}")
        if empty := [name for name, scale in self.scales.items() if scale is None]:
            raise InputError(f"{empty[0].lstrip('+')}: expected a number, got nothing")
        strength = [f"strength={self.strength:g}"] if "strength" in self.shown(reads) else []
        sampler = [] if self.sampler == OWN else [f"sampler={self.sampler}"]
        seeds = ",".join(str(seed + i) for i in range(self.count))
        guidance = [f"{name}={scale:g}" for name, scale in self.scales.items()]
        return [*strength, *sampler, f"sampler.steps={steps}", *guidance, f"seeds=[{seeds}]"]

    def scene(self, reads: Reads, folder: Path) -> Scene:
        """What the images are made of; a drawing is written to ``folder``. Raises InputError for missing pictures."""
        shown = self.shown(reads)
        image = Path(self.image) if self.image and "image" in shown else None
        mask, class_map = None, Path(self.map) if self.map and "map" in shown else None
        if "drawing" in shown:
            image, mask = painted(self.drawing, folder)
        if image is None and "image" in shown and not (reads.edges and class_map):
            either = "upload one, or a map of edges" if reads.edges else "upload one"
            raise InputError(f"Image: there is none yet; {either}")
        if class_map is None and "map" in shown and not reads.edges:
            raise InputError("Map: there is none yet; upload a PNG of class indices")
        return Scene(
            prompt=(self.prompt or "") if reads.captions else None,
            negative_prompt=self.negative_prompt or None,
            label=self.label,
            numbers=self.numbers,
            image=image,
            mask=mask,
            map=class_map,
        )


def pictures_read(reads: Reads) -> tuple[str, ...]:
    """Fields of ``Form`` with the pictures that the model reads."""
    if "low_res" in reads.fields:
        return ("image",)
    drawing = ("drawing",) if "mask" in reads.fields else ()
    if "segmentation" not in reads.fields:
        return drawing
    return (*drawing, "image", "map") if reads.edges and not drawing else (*drawing, "map")


def may_start(reads: Reads) -> bool:
    """Whether images may begin at an image or with a hole (image-to-image, RePaint): where the model reads neither."""
    return not {"image", "drawing"} & set(pictures_read(reads))


def painted(drawing: Mapping[str, Any] | None, folder: Path) -> tuple[Path, Path]:
    """``image.png`` and ``mask.png`` in ``folder``, white where anything is painted. Raises InputError without both."""
    if not drawing or not drawing["background"]:
        raise InputError("Image with a hole: there is none yet; upload one and paint over what is to be made anew")
    with Image.open(drawing["background"]) as opened:
        image = opened.convert("RGB")
    mask = Image.new("L", image.size)
    for layer in drawing["layers"]:
        with Image.open(layer) as opened:
            mask = ImageChops.lighter(mask, opened.convert("RGBA").getchannel("A"))
    mask = mask.point(lambda opacity: 255 * (opacity >= 128))
    if mask.getbbox() is None:
        raise InputError("Image with a hole: nothing is painted; paint over what is to be made anew")
    places = folder / "image.png", folder / "mask.png"
    image.save(places[0])
    mask.save(places[1])
    return places


def named(scene: Scene) -> Scene:
    """With the names of the files alone, as the page's readers know them."""
    return replace(scene, **{name: Path(path.name) for name in FILES if (path := getattr(scene, name)) is not None})


def command(base: list[str], scene: Scene, settings: list[str]) -> str:
    """The line for a POSIX shell that makes the same images. ``base``: the page's own overrides."""
    written = scene.about().items()
    given = [f"{name}={value}" if name in ("label", "numbers") else _override(name, value) for name, value in written]
    return shlex.join(["python", "sample.py", *base, *given, *settings])


def _override(name: str, value: str) -> str:
    """As typed; in quotes for Hydra where sample.py would take the typed value for something else."""
    typed = f"{name}={value}"
    if OverridesParser.create().parse_override(quote_overrides([typed])[0]).value() == value:
        return typed
    escaped = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value)
    return f"{name}={QuotedString(escaped, Quote.single).with_quotes()}"

"""What a picture of the embedded world contains: tables of names, exact attributes, and scenes drawn from a seed.

The world is a square of 64 units whatever the image size; x runs to the right, y downwards. A scene is one object, or
two in opposite cells of a 3x3 grid, on a flat background. Six (shape, colour) pairs, ``HELD_OUT``, never occur in
training, so that a validation scene can ask for a combination the model has not seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from latentdiff.config.errors import InputError

WORLD = 64.0

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")

COLOURS = {
    "red": (225, 30, 40),
    "green": (30, 165, 60),
    "blue": (40, 80, 235),
    "yellow": (250, 220, 30),
    "orange": (255, 130, 10),
    "purple": (145, 40, 200),
    "cyan": (40, 215, 235),
    "pink": (255, 115, 200),
}

BACKGROUNDS = {
    "white": (248, 248, 248),
    "black": (10, 10, 10),
    "gray": (128, 128, 128),
    "beige": (225, 205, 165),
    "navy": (15, 25, 105),
    "maroon": (105, 15, 25),
}

SIZES = {"small": 8.8, "large": 13.2}
"""Half the extent of an object in world units, before ``radius_scale``."""

POSITIONS = {
    "top left": (-1, -1),
    "top": (0, -1),
    "top right": (1, -1),
    "left": (-1, 0),
    "center": (0, 0),
    "right": (1, 0),
    "bottom left": (-1, 1),
    "bottom": (0, 1),
    "bottom right": (1, 1),
}
"""Name -> (column, row) relative to the middle cell."""

CELL = 16.5
"""World units between the centres of neighbouring cells."""

OPPOSITE = {"left": "right", "top": "bottom", "top left": "bottom right", "top right": "bottom left"}
OPPOSITE |= {second: first for first, second in OPPOSITE.items()}

HELD_OUT = frozenset((shape, list(COLOURS)[(i + 3) % len(COLOURS)]) for i, shape in enumerate(SHAPES))
"""(shape, colour) pairs absent from training: every shape misses one colour, no two the same."""

HELD_OUT_SHARE = {"train": 0.0, "val": 0.3}
"""Split -> share of its scenes that contain a held-out pair; the rest contain none."""

TWO_OBJECTS = 0.3
POSITION_JITTER, RADIUS_JITTER, ROTATION_JITTER, SHADE_JITTER = 1.5, 0.06, 8.0, 6
ROUND = ("circle", "ring")


@dataclass(frozen=True)
class Object:
    shape: str
    colour: str
    size: str
    position: str
    dx: float = 0.0
    """World units right of the cell's centre."""
    dy: float = 0.0
    """World units below the cell's centre."""
    radius_scale: float = 1.0
    rotation: float = 0.0
    """Degrees, clockwise as seen."""
    shade: int = 0
    """Added to each channel of the colour."""

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) in world units."""
        column, row = POSITIONS[self.position]
        return WORLD / 2 + CELL * column + self.dx, WORLD / 2 + CELL * row + self.dy

    @property
    def radius(self) -> float:
        """Half the extent in world units."""
        return SIZES[self.size] * self.radius_scale

    @property
    def rgb(self) -> tuple[int, int, int]:
        return _shaded(COLOURS[self.colour], self.shade)


@dataclass(frozen=True)
class Scene:
    background: str
    objects: tuple[Object, ...]
    shade: int = 0
    """Added to each channel of the background."""

    @property
    def rgb(self) -> tuple[int, int, int]:
        return _shaded(BACKGROUNDS[self.background], self.shade)

    @property
    def held_out(self) -> bool:
        return any((o.shape, o.colour) in HELD_OUT for o in self.objects)

    @property
    def label(self) -> int:
        """Class of the scene: the first object's shape as an index into ``SHAPES``."""
        return SHAPES.index(self.objects[0].shape)


def sample_scene(seed: int, index: int, held_out: bool | None = None, *, split: str = "train") -> Scene:
    """Scene number ``index`` of a split: a pure function of (seed, split, index, held_out).

    ``held_out`` forces the scene to contain a held-out pair (True) or none (False); None goes by the split's share.
    Raises InputError for an unknown split and for held-out pairs asked of the training split.
    """
    if split not in HELD_OUT_SHARE:
        raise InputError(f"expected split to be one of {list(HELD_OUT_SHARE)}, got '{split}'")
    if held_out and HELD_OUT_SHARE[split] == 0.0:
        raise InputError(f"split '{split}' never contains held-out pairs; ask for them in split 'val'")
    rng = np.random.default_rng((seed, list(HELD_OUT_SHARE).index(split), index))
    forced = bool(rng.random() < HELD_OUT_SHARE[split]) if held_out is None else held_out
    positions = _sample_positions(rng)
    pairs = _sample_pairs(rng, len(positions), forced)
    objects = tuple(_sample_object(rng, *pair, position) for pair, position in zip(pairs, positions))
    return Scene(_pick(rng, tuple(BACKGROUNDS)), objects, _sample_shade(rng))


def attributes(scene: Scene, image_size: int = 64) -> dict[str, Any]:
    """The scene as plain JSON values: names, geometry and derived flags; ``from_attributes`` inverts it exactly."""
    return {
        "background": scene.background,
        "background_shade": scene.shade,
        "n_objects": len(scene.objects),
        "objects": [asdict(o) for o in scene.objects],
        "held_out": scene.held_out,
        "label": scene.label,
        "image_size": image_size,
    }


def from_attributes(values: Mapping[str, Any]) -> Scene:
    """Inverse of ``attributes``. Raises InputError for names the world does not have."""
    objects = tuple(Object(**o) for o in values["objects"])
    _check_name("background", values["background"], BACKGROUNDS)
    for o in objects:
        _check_name("shape", o.shape, SHAPES)
        _check_name("colour", o.colour, COLOURS)
        _check_name("size", o.size, SIZES)
        _check_name("position", o.position, POSITIONS)
    return Scene(values["background"], objects, values.get("background_shade", 0))


def _check_name(kind: str, name: object, table: Mapping[str, Any] | tuple[str, ...]) -> None:
    if name not in table:
        raise InputError(f"expected {kind} to be one of {list(table)}, got {name!r}")


def _sample_positions(rng: np.random.Generator) -> tuple[str, ...]:
    if rng.random() < TWO_OBJECTS:
        first = _pick(rng, tuple(OPPOSITE))
        return first, OPPOSITE[first]
    return (_pick(rng, tuple(POSITIONS)),)


def _sample_pairs(rng: np.random.Generator, n: int, held_out: bool) -> list[tuple[str, str]]:
    """``n`` (shape, colour) pairs that share neither shape nor colour, with a held-out one among them or with none."""
    while True:
        pairs = [(_pick(rng, SHAPES), _pick(rng, tuple(COLOURS))) for _ in range(n)]
        if held_out:
            pairs[int(rng.integers(n))] = sorted(HELD_OUT)[int(rng.integers(len(HELD_OUT)))]
        distinct = len({shape for shape, _ in pairs}) == len({colour for _, colour in pairs}) == n
        if distinct and held_out == any(pair in HELD_OUT for pair in pairs):
            return pairs


def _sample_object(rng: np.random.Generator, shape: str, colour: str, position: str) -> Object:
    dx, dy = rng.uniform(-POSITION_JITTER, POSITION_JITTER, 2)
    scale = 1.0 + rng.uniform(-RADIUS_JITTER, RADIUS_JITTER)
    rotation = rng.uniform(-ROTATION_JITTER, ROTATION_JITTER)
    return Object(
        shape=shape,
        colour=colour,
        size=_pick(rng, tuple(SIZES)),
        position=position,
        dx=round(float(dx), 3),
        dy=round(float(dy), 3),
        radius_scale=round(float(scale), 4),
        rotation=0.0 if shape in ROUND else round(float(rotation), 2),
        shade=_sample_shade(rng),
    )


def _sample_shade(rng: np.random.Generator) -> int:
    return int(rng.integers(-SHADE_JITTER, SHADE_JITTER + 1))


def _pick(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def _shaded(rgb: tuple[int, int, int], shade: int) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, channel + shade)) for channel in rgb)
    return red, green, blue

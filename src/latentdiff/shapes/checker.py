"""Reads the attributes off an image of the embedded world and compares them with what was asked for.

Nothing is learned: colours come from the palettes, shapes from rendered templates. Any image is read at 64x64 pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.shapes.components import components, dilate, erode
from latentdiff.shapes.renderer import coverage
from latentdiff.shapes.scene import BACKGROUNDS, CELL, COLOURS, POSITIONS, ROTATION_JITTER, ROUND, SHAPES, SIZES, WORLD

OBJECT_ATTRIBUTES = ("colour", "position", "size", "shape")
ATTRIBUTES = ("background", *OBJECT_ATTRIBUTES)

SIDE = int(WORLD)
"""Pixels per side at which images are read; one pixel is one world unit."""
CONTRAST = 40.0
"""RGB distance from the background above which a pixel may belong to an object."""
MIN_AREA = 16
"""Pixels below which a component is a speck. The smallest object covers about 80."""
SPLIT_SHARE = 0.2
"""A component is two touching objects if a second colour fills this share of its inside, one cell or more away."""
WINDOW = 37
"""Side of the window in which an object is compared with the templates; holds the largest object."""


@dataclass(frozen=True)
class ReadObject:
    shape: str
    colour: str
    size: str
    position: str
    centre: tuple[float, float]
    """(x, y) of the bounding box's centre in world units."""
    area: float
    """Square world units, counting partly covered pixels in part."""
    fit: float
    """Soft intersection over union with the best template, in [0, 1]."""
    mask: np.ndarray
    """bool (64, 64)."""


@dataclass(frozen=True)
class Reading:
    background: str
    objects: tuple[ReadObject, ...]
    """Largest area first."""


def read(images: Tensor | np.ndarray) -> list[Reading]:
    """What each of the images, uint8 (B, 3, H, W), shows. Raises InputError for another shape or dtype."""
    pixels = torch.as_tensor(images).detach().cpu()
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.dtype != torch.uint8:
        raise InputError(f"expected uint8 images (B, 3, H, W), got {pixels.dtype} {tuple(pixels.shape)}")
    pixels = pixels.float()
    if pixels.shape[-2:] != (SIDE, SIDE):
        size = (SIDE, SIDE)
        pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
    return [_read_one(image) for image in pixels.permute(0, 2, 3, 1).numpy()]


def described(scene: Reading | Mapping[str, Any]) -> dict[str, Any]:
    """What ``score`` compares, in the form of ``scene.attributes`` and JSON-ready: of what was read or asked for."""
    if isinstance(scene, Reading):
        objects = [{name: getattr(o, name) for name in OBJECT_ATTRIBUTES} for o in scene.objects]
        return {"background": scene.background, "objects": objects}
    objects = [{name: o[name] for name in OBJECT_ATTRIBUTES} for o in scene["objects"]]
    return {"background": scene["background"], "objects": objects}


def score(
    readings: Sequence[Reading | Mapping[str, Any]], attributes: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Per image: ``n_objects`` asked for, and per attribute the share that is right (None where nothing was asked).

    ``readings`` as ``read`` or ``described`` gives them. ``attributes`` are those of ``scene.attributes`` or
    ``captions.parse``; an attribute that is None is not asked for.
    Read and expected objects are paired by the assignment with most agreement over all attributes, so that swapped
    colours count as wrong. A missing object has nothing right; of surplus objects the smallest are ignored.
    """
    if len(readings) != len(attributes):
        raise InputError(f"expected one reading per attributes, got {len(readings)} and {len(attributes)}")
    return [_score_one(described(reading), wanted) for reading, wanted in zip(readings, attributes)]


def summarise(scores: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over the images with one and with two objects; an attribute that no image asks for is left out."""
    groups: dict[str, dict[str, list[float]]] = {"one_object": {}, "two_objects": {}}
    names = {1: "one_object", 2: "two_objects"}
    for entry in scores:
        if entry["n_objects"] in names:
            for attribute in ATTRIBUTES:
                if entry[attribute] is not None:
                    groups[names[entry["n_objects"]]].setdefault(attribute, []).append(entry[attribute])
    return {group: {name: float(np.mean(v)) for name, v in values.items()} for group, values in groups.items()}


def _score_one(reading: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    background = wanted["background"]
    result: dict[str, Any] = {
        "n_objects": len(wanted["objects"]),
        "background": None if background is None else float(reading["background"] == background),
    }
    matched = _match(reading["objects"], wanted["objects"])
    for name in OBJECT_ATTRIBUTES:
        right = [float(_agrees(found, o, name)) for found, o in zip(matched, wanted["objects"]) if o[name] is not None]
        result[name] = float(np.mean(right)) if right else None
    return result


def _match(
    found: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]
) -> tuple[Mapping[str, Any] | None, ...]:
    """The read object, or None, for each wanted one."""
    kept = (*found, *[None] * len(wanted))[: len(wanted)]

    def agreement(order: tuple[Mapping[str, Any] | None, ...]) -> int:
        return sum(_agrees(f, o, name) for f, o in zip(order, wanted) for name in OBJECT_ATTRIBUTES)

    return max(permutations(kept), key=agreement)


def _agrees(found: Mapping[str, Any] | None, wanted: Mapping[str, Any], name: str) -> bool:
    return found is not None and found[name] == wanted[name]


def _read_one(image: np.ndarray) -> Reading:
    border = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    background = np.median(border, axis=0)
    distance = np.linalg.norm(image - background, axis=-1)
    masks = [part for mask in components(distance > CONTRAST, MIN_AREA) for part in _split(image, mask)]
    objects = []
    for mask in masks:
        others = np.logical_or.reduce([m for m in masks if m is not mask], initial=False)
        found = _read_object(image, background, mask, others)
        if found is not None:
            objects.append(found)
    objects.sort(key=lambda o: -o.area)
    return Reading(_nearest(background, BACKGROUNDS), tuple(objects))


def _read_object(image: np.ndarray, background: np.ndarray, mask: np.ndarray, others: np.ndarray) -> ReadObject | None:
    """Measures the object under a rough mask; None if nothing of it stands out by half its contrast."""
    inside = image[_inside(mask)]
    distance = np.linalg.norm(inside - background, axis=-1)
    colour = np.median(inside[distance >= np.median(distance)], axis=0)  # the purer half: blur mixes the rest
    contrast = colour - background
    alpha = ((image - background) @ contrast / (contrast @ contrast)).clip(0, 1)
    alpha = np.where(dilate(dilate(mask)) & ~others, alpha, 0).astype(np.float32)
    exact = alpha > 0.5
    if exact.sum() < MIN_AREA:
        return None
    rows, columns = np.flatnonzero(exact.any(1)), np.flatnonzero(exact.any(0))
    centre = (columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2
    shape, size, fit = _fit(alpha)
    return ReadObject(
        shape=shape,
        colour=_nearest(colour, COLOURS),
        size=size,
        position=_cell(*centre),
        centre=centre,
        area=float(alpha.sum()),
        fit=fit,
        mask=exact,
    )


def _fit(alpha: np.ndarray) -> tuple[str, str, float]:
    """(shape, size, soft IoU) of the best template: sum of minima over sum of maxima."""
    names, templates, areas = _templates()
    window = _centred(alpha)
    common = np.minimum(templates, window.ravel()).sum(1)
    overlap = common / (areas + window.sum() - common)
    best = int(overlap.argmax())
    shape, radius = names[best]
    return shape, min(SIZES, key=lambda size: abs(np.log(SIZES[size] / radius))), float(overlap[best])


@cache
def _templates() -> tuple[list[tuple[str, float]], np.ndarray, np.ndarray]:
    """(shape, radius) of each template, the templates (N, WINDOW^2) and their areas (N,)."""
    names, stack = [], []
    for shape in SHAPES:
        for rotation in (0.0,) if shape in ROUND else np.linspace(-ROTATION_JITTER, ROTATION_JITTER, 5):
            for radius in np.geomspace(0.87 * SIZES["small"], 1.13 * SIZES["large"], 14):
                names.append((shape, float(radius)))
                stack.append(_centred(coverage(shape, radius, float(rotation), (WORLD / 2, WORLD / 2), SIDE)).ravel())
    templates = np.stack(stack)
    return names, templates, templates.sum(1)


def _centred(alpha: np.ndarray) -> np.ndarray:
    """(WINDOW, WINDOW) around the centre of mass, moved onto the middle pixel by bilinear interpolation."""
    total = alpha.sum()
    y = float(alpha.sum(1) @ np.arange(SIDE) / total)
    x = float(alpha.sum(0) @ np.arange(SIDE) / total)
    top, left = int(y), int(x)
    padded = np.pad(alpha, WINDOW // 2 + 1)
    part = padded[top + 1 : top + WINDOW + 2, left + 1 : left + WINDOW + 2]
    part = part[:-1] * (1 - (y - top)) + part[1:] * (y - top)
    return (part[:, :-1] * (1 - (x - left)) + part[:, 1:] * (x - left)).astype(np.float32)


def _split(image: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """The component itself, or the two objects of different colour that it joins."""
    palette = np.array(list(COLOURS.values()), np.float32)
    inside = image[_inside(mask)]
    names = np.linalg.norm(inside[:, None] - palette, axis=-1).argmin(1)
    first, second = np.bincount(names, minlength=len(palette)).argsort()[::-1][:2]
    if (names == second).mean() < SPLIT_SHARE:
        return [mask]
    places = np.argwhere(_inside(mask))
    centres = [places[names == name].mean(0) for name in (first, second)]
    if np.linalg.norm(centres[0] - centres[1]) < CELL:
        return [mask]
    medians = [np.median(inside[names == name], axis=0) for name in (first, second)]
    nearer = np.linalg.norm(image - medians[0], axis=-1) < np.linalg.norm(image - medians[1], axis=-1)
    return components(mask & nearer, MIN_AREA) + components(mask & ~nearer, MIN_AREA)


def _inside(mask: np.ndarray) -> np.ndarray:
    """The mask without its edge, where colours mix; the mask itself if it is all edge."""
    inner = erode(mask)
    return inner if inner.sum() >= MIN_AREA // 2 else mask


def _cell(x: float, y: float) -> str:
    column, row = ((v - WORLD / 2) / CELL for v in (x, y))
    return min(POSITIONS, key=lambda name: (POSITIONS[name][0] - column) ** 2 + (POSITIONS[name][1] - row) ** 2)


def _nearest(rgb: np.ndarray, palette: Mapping[str, tuple[int, int, int]]) -> str:
    return min(palette, key=lambda name: float(((rgb - palette[name]) ** 2).sum()))

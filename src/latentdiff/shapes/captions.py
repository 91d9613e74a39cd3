"""Says in English what a scene shows, in many wordings that all name every attribute, and reads such sentences back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from latentdiff.shapes.scene import BACKGROUNDS, COLOURS, OPPOSITE, POSITIONS, SHAPES, SIZES, Object, Scene

SHAPE_WORDS = {shape: (shape,) for shape in SHAPES} | {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "cross": ("cross", "plus sign"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
BACKGROUND_WORDS = {name: (name,) for name in BACKGROUNDS} | {"gray": ("gray", "grey")}
PLACES = {
    "top left": ("at the top left", "in the upper left", "in the top left corner"),
    "top": ("at the top",),
    "top right": ("at the top right", "in the upper right", "in the top right corner"),
    "left": ("on the left",),
    "center": ("in the center", "in the middle"),
    "right": ("on the right",),
    "bottom left": ("at the bottom left", "in the lower left", "in the bottom left corner"),
    "bottom": ("at the bottom",),
    "bottom right": ("at the bottom right", "in the lower right", "in the bottom right corner"),
}
RELATIONS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "top": ("above",),
    "bottom": ("below",),
}
"""Position of the first object -> words between it and the object in the opposite cell."""


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One wording, drawn from ``rng``; it names the background and each object's size, colour, shape and position."""
    positions = [o.position for o in scene.objects]
    if len(positions) == 2 and positions[0] in RELATIONS and rng.random() < 0.5:
        first, second = (_noun_phrase(o, rng) for o in scene.objects)
        body = f"{first} {_choose(RELATIONS[positions[0]], rng)} {second}"
    else:
        placed = _choose(_PLACED, rng)
        body = _choose((" and ", ", "), rng).join(placed(o, rng) for o in scene.objects)
    return _choose(_FRAMES, rng)(body, _choose(BACKGROUND_WORDS[scene.background], rng))


def parse(text: str) -> dict[str, Any]:
    """Reads a caption or a free prompt in the same vocabulary.

    Returns ``{"background", "n_objects", "objects": [{"shape", "colour", "size", "position"}]}`` with None for what the
    text leaves open; words outside the vocabulary are skipped. Inverts ``caption``.
    """
    objects: list[dict[str, str | None]] = []
    background: str | None = None
    current: dict[str, str | None] = {}
    relations: list[tuple[int, str]] = []

    def finish() -> None:
        nonlocal current
        if current.get("shape"):
            objects.append({key: current.get(key) for key in ("shape", "colour", "size", "position")})
        current = {}

    for kind, value in _tokens(text):
        if kind == "background":
            background = value or background
        elif kind == "relation" and value is not None:
            finish()
            relations.append((len(objects) - 1, value))
        elif kind == "article":
            if "shape" in current:
                finish()
        else:
            if kind in current:
                finish()
            current[kind] = value
    finish()
    _place_by_relation(objects, relations)
    return {"background": background, "n_objects": len(objects), "objects": objects}


def _place_by_relation(objects: list[dict[str, str | None]], relations: list[tuple[int, str]]) -> None:
    """Two related objects stand in opposite cells; a position that the text states itself is kept."""
    for index, position in relations:
        if index < 0 or index + 1 >= len(objects):
            continue
        first, second = objects[index], objects[index + 1]
        first["position"] = first["position"] or position
        second["position"] = second["position"] or OPPOSITE[position]


Words = Callable[[Object, np.random.Generator], str]


def _choose(options: tuple, rng: np.random.Generator) -> Any:
    return options[int(rng.integers(len(options)))]


def _noun_phrase(o: Object, rng: np.random.Generator) -> str:
    return f"a {_choose(SIZE_WORDS[o.size], rng)} {o.colour} {_choose(SHAPE_WORDS[o.shape], rng)}"


def _phrase_place(o: Object, rng: np.random.Generator) -> str:
    return f"{_noun_phrase(o, rng)} {_choose(PLACES[o.position], rng)}"


def _place_phrase(o: Object, rng: np.random.Generator) -> str:
    return f"{_choose(PLACES[o.position], rng)} {_noun_phrase(o, rng)}"


def _size_after(o: Object, rng: np.random.Generator) -> str:
    article = "an" if o.colour == "orange" else "a"
    noun = f"{article} {o.colour} {_choose(SHAPE_WORDS[o.shape], rng)}"
    return f"{noun}, {_choose(SIZE_WORDS[o.size], rng)}, {_choose(PLACES[o.position], rng)}"


def _colour_after(o: Object, rng: np.random.Generator) -> str:
    noun = f"a {_choose(SIZE_WORDS[o.size], rng)} {_choose(SHAPE_WORDS[o.shape], rng)}"
    return f"{noun} in {o.colour} {_choose(PLACES[o.position], rng)}"


def _terse(o: Object, rng: np.random.Generator) -> str:
    return f"{_choose(SIZE_WORDS[o.size], rng)} {o.colour} {_choose(SHAPE_WORDS[o.shape], rng)} {o.position}"


_PLACED: tuple[Words, ...] = (_phrase_place, _phrase_place, _place_phrase, _size_after, _colour_after, _terse)

_FRAMES: tuple[Callable[[str, str], str], ...] = (
    lambda body, colour: f"{body} on a {colour} background",
    lambda body, colour: f"{body}, {colour} background",
    lambda body, colour: f"{colour} background, {body}",
    lambda body, colour: f"on a {colour} background, {body}",
    lambda body, colour: f"a picture of {body} on a {colour} background",
    lambda body, colour: f"{body} against {colour}",
)

# Words that free prompts use beside those of the captions.
_MORE_SHAPES = {
    "circle": ("disk", "dot", "ball"),
    "square": ("cube",),
    "cross": ("plus",),
    "ring": ("donut", "hoop"),
}
_MORE_COLOURS = {"purple": ("violet",), "cyan": ("turquoise", "light blue")}
_MORE_RELATIONS = {"left": ("on the left of",), "right": ("on the right of",), "top": ("over", "on top of")}
_MORE_RELATIONS |= {"bottom": ("under", "beneath", "underneath")}
_ARTICLES = ("a", "an", "one", "another")


def _place_words() -> dict[str, str]:
    """Words for a place -> position: every order and synonym of its vertical and horizontal part."""
    vertical = {"top": ("top", "upper"), "bottom": ("bottom", "lower")}
    words = {place: name for name, places in PLACES.items() for place in places} | {name: name for name in POSITIONS}
    for name in POSITIONS:
        rows = vertical.get(name.split()[0], ("center", "centre", "middle"))
        column = name.split()[-1] if name.split()[-1] in ("left", "right") else None
        columns = (column,) if column else ("center", "centre", "middle")
        words |= {f"{row} {col}": name for row in rows for col in columns}
        words |= {f"{col} {row}": name for row in rows for col in columns}
    return words | dict.fromkeys(("center", "centre", "middle"), "center")


def _vocabulary() -> dict[str, tuple[str, str]]:
    """Phrase -> (kind, value)."""
    tables: list[tuple[str, Mapping[str, Iterable[str]]]] = [
        ("shape", SHAPE_WORDS),
        ("shape", _MORE_SHAPES),
        ("shape", {shape: (f"{shape}s",) for shape in SHAPES}),
        ("colour", {colour: (colour,) for colour in COLOURS}),
        ("colour", _MORE_COLOURS),
        ("size", {size: SIZE_WORDS[size] for size in SIZES}),
        ("relation", RELATIONS),
        ("relation", _MORE_RELATIONS),
    ]
    words = {word: ("position", name) for word, name in _place_words().items()}
    words |= {word: (kind, name) for kind, table in tables for name, many in table.items() for word in many}
    return words | {article: ("article", article) for article in _ARTICLES}


_VOCABULARY = _vocabulary()
_BACKGROUND_NAMES = {word: name for name, words in BACKGROUND_WORDS.items() for word in words}
_ANY_BACKGROUND = "|".join(_BACKGROUND_NAMES)
_TOKEN = re.compile(
    r"\b(?:"
    rf"(?:(?:on|against|with|over) )?(?:an? |the )?(?P<before>[a-z]+) (?:background|backdrop)|"
    rf"background (?:is |of )?(?P<after>{_ANY_BACKGROUND})|"
    rf"(?:on|against) (?P<plain>{_ANY_BACKGROUND})|"
    rf"(?P<phrase>{'|'.join(sorted(_VOCABULARY, key=len, reverse=True))})"
    r")\b"
)


def _tokens(text: str) -> list[tuple[str, str | None]]:
    """(kind, value) of every known phrase, in order; a background of an unknown colour has the value None."""
    plain = " ".join(re.sub(r"[^a-z]+", " ", text.lower()).split())
    tokens: list[tuple[str, str | None]] = []
    for match in _TOKEN.finditer(plain):
        if match["phrase"] is not None:
            tokens.append(_VOCABULARY[match["phrase"]])
        else:
            word = match["before"] or match["after"] or match["plain"]
            tokens.append(("background", _BACKGROUND_NAMES.get(word)))
    return tokens

"""Captions: every wording names every attribute, and the grammar reads all of them back."""

from __future__ import annotations

import numpy as np
import pytest

from latentdiff.shapes.captions import RELATIONS, caption, parse
from latentdiff.shapes.scene import Object, Scene, sample_scene


def _named(scene: Scene) -> list[dict[str, str]]:
    return [{key: getattr(o, key) for key in ("shape", "colour", "size", "position")} for o in scene.objects]


def test_parse_inverts_caption():
    rng = np.random.default_rng(0)
    for i in range(2000):
        scene = sample_scene(11, i, split="val")
        text = caption(scene, rng)
        assert parse(text) == {
            "background": scene.background,
            "n_objects": len(scene.objects),
            "objects": _named(scene),
        }, text


def test_wording_varies_and_depends_on_the_generator_alone():
    scene = next(s for s in (sample_scene(0, i) for i in range(99)) if len(s.objects) == 2)
    texts = {caption(scene, np.random.default_rng(i)) for i in range(200)}
    assert len(texts) > 100
    assert caption(scene, np.random.default_rng(4)) == caption(scene, np.random.default_rng(4))


def test_captions_stay_short():
    rng = np.random.default_rng(1)
    texts = [caption(sample_scene(2, i), rng) for i in range(2000)]
    # Every word and comma of this vocabulary is one CLIP token.
    assert max(len(text.replace(",", " ,").split()) for text in texts) <= 30


def test_opposite_pairs_on_the_axes_are_also_said_as_relations():
    first = Object("circle", "red", "large", "left")
    scene = Scene("white", (first, Object("square", "blue", "small", "right")))
    texts = [caption(scene, np.random.default_rng(i)) for i in range(200)]
    related = [text for text in texts if any(word in text for word in RELATIONS["left"])]
    assert 60 < len(related) < 140
    assert not any("on the" in text.replace("on the left", "") for text in related)


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("a red circle, left of a box", [("circle", "red", None, "left"), ("square", None, None, "right")]),
        ("A HUGE star under a pink Ring", [("star", None, "large", "bottom"), ("ring", "pink", None, "top")]),
        ("a circle and a red square", [("circle", None, None, None), ("square", "red", None, None)]),
        ("tiny ring bottom-right, a cross", [("ring", None, "small", "bottom right"), ("cross", None, None, None)]),
        ("big red disk upper left", [("circle", "red", "large", "top left")]),
        ("one violet cross in the centre", [("cross", "purple", None, "center")]),
        ("a dog", []),
        ("", []),
    ],
)
def test_free_prompts(text: str, objects: list[tuple[str | None, ...]]):
    read = parse(text)
    assert read["background"] is None
    assert read["n_objects"] == len(objects)
    assert [tuple(o.values()) for o in read["objects"]] == objects


@pytest.mark.parametrize(
    ("text", "background"),
    [
        ("a red circle on a grey background", "gray"),
        ("background is navy, a circle", "navy"),
        ("a circle against black", "black"),
        ("a circle on a purple background", None),
    ],
)
def test_backgrounds_of_free_prompts(text: str, background: str | None):
    read = parse(text)
    assert read["background"] == background
    assert [o["shape"] for o in read["objects"]] == ["circle"]
    assert read["objects"][0]["colour"] == ("red" if "red" in text else None)


def test_a_position_that_the_text_states_outlives_the_relation():
    read = parse("a red star at the top left, left of a blue ring")
    assert [o["position"] for o in read["objects"]] == ["top left", "right"]

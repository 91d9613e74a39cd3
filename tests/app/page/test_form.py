"""The demo page's form: pictures, requests, faults in the words of the page, and the line for sample.py."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from latentdiff.app.page.form import HOLE, IMAGE, MOST, Form, command, painted, pictures_read
from latentdiff.app.sampling.request import Reads, Scene
from latentdiff.config.errors import InputError
from latentdiff.config.quoting import quote_overrides
from latentdiff.data.degradations import Degraded
from latentdiff.data.masks import RandomMasks
from latentdiff.data.segmentation import EdgeMaps, SegmentationMaps


def reads(**fields: object) -> Reads:
    return Reads(captions=False, labels=False, classes=None, class_names=None, fields=fields)


MASK, SMALL = {"mask": RandomMasks()}, {"low_res": Degraded(factor=4)}
MAPS, EDGES = {"segmentation": SegmentationMaps(classes=7)}, {"segmentation": EdgeMaps()}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ()),
        (MASK, ("drawing",)),
        (SMALL, ("image",)),
        (MAPS, ("map",)),
        (EDGES, ("image", "map")),
        ({**MASK, **MAPS}, ("drawing", "map")),
    ],
)
def test_the_pictures_follow_from_what_the_model_reads(fields: dict, expected: tuple) -> None:
    assert pictures_read(reads(**fields)) == expected


def test_fields_that_are_not_shown_do_not_count(tmp_path: Path) -> None:
    form = Form(start=IMAGE, image="a.png", strength=0.5, drawing={"background": None}, map="m.png", steps=1)
    scene = form.scene(reads(), tmp_path)
    assert (scene.image, scene.mask, scene.map) == (Path("a.png"), None, None)
    assert form.settings(reads()) == ["strength=0.5", "sampler.steps=1", "seeds=[0,1,2,3]"]
    noise = replace(form, start=Form().start)
    assert noise.scene(reads(), tmp_path) == Scene(None, None, None, None, None, None)
    assert noise.settings(reads()) == ["sampler.steps=1", "seeds=[0,1,2,3]"]


WRONG = {
    "no seed": ({"seed": None}, {}, "Seed: expected a whole number of at least 0, got nothing"),
    "a seed below": ({"seed": -1}, {}, "Seed: .* got -1"),
    "too many": ({"count": MOST + 1}, {}, "Images: expected 1 to 16, got 17"),
    "no steps": ({"steps": None}, {}, "Steps: expected 1 to 1000, got nothing"),
    "too many steps": ({"steps": 1001}, {}, "Steps: .* got 1001"),
    "no scale": ({"scales": {"+guidance.scales.text": None}}, {}, "^guidance.scales.text: expected a number"),
    "no start": ({"start": "Sound"}, {}, "Start: there is no 'Sound'; choose one of Noise, An image"),
    "no image": ({"start": IMAGE}, {}, "Image: there is none yet; upload one$"),
    "nothing to enlarge": ({}, SMALL, "Image: there is none yet"),
    "no hole": ({"start": HOLE}, {}, "Image with a hole: there is none yet"),
    "an empty editor": ({}, {**MASK}, "Image with a hole: there is none yet"),
    "no map": ({}, MAPS, "Map: there is none yet; upload a PNG of class indices"),
    "no edges": ({}, EDGES, "upload one, or a map of edges"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_form_at_fault_is_refused_in_the_words_of_the_page(tmp_path: Path, case: str) -> None:
    changed, fields, message = WRONG[case]
    form = replace(Form(steps=1, drawing={"background": None, "layers": []}), **changed)
    with pytest.raises(InputError, match=message):
        form.settings(reads(**fields)), form.scene(reads(**fields), tmp_path)


def test_what_is_painted_is_the_hole(tmp_path: Path) -> None:
    layers = []
    for i, alpha in enumerate((255, 180, 100)):
        layer = np.zeros((8, 10, 4), np.uint8)
        layer[2 * i : 2 * i + 2, 3:6] = (255, 0, 255, alpha)
        Image.fromarray(layer).save(tmp_path / f"{i}.png")
        layers.append(str(tmp_path / f"{i}.png"))
    Image.new("RGB", (10, 8), (1, 2, 3)).save(tmp_path / "photo.webp", lossless=True)
    drawing = {"background": str(tmp_path / "photo.webp"), "layers": layers, "composite": None}
    image, mask = painted(drawing, tmp_path)
    assert Image.open(image).getcolors() == [(80, (1, 2, 3))]
    expected = np.zeros((8, 10), np.uint8)
    expected[:4, 3:6] = 255
    assert np.array_equal(np.asarray(Image.open(mask)), expected)
    with pytest.raises(InputError, match="nothing is painted"):
        painted({**drawing, "layers": layers[2:]}, tmp_path)


REST = {"label": 2, "numbers": 0.5, "image": "my photo.png", "seeds": [0, 1]}


@pytest.mark.parametrize(
    "prompt",
    ["a red circle", "it's, [so] {big}", "[a, b]", "null", "", "'quoted'", "${oc.env:HOME}", "\\${x}", "  a=b "],
)
def test_any_prompt_survives_the_command(prompt: str) -> None:
    scene = replace(Scene(prompt, None, 2, Path("my photo.png"), None, None), numbers=0.5)
    _, _, *overrides = shlex.split(command(["checkpoint=a b"], scene, ["seeds=[0,1]"]))
    parsed = OverridesParser.create().parse_overrides(quote_overrides(overrides))
    cfg = OmegaConf.create({one.key_or_group: one.value() for one in parsed})
    assert dict(cfg.items()) == {"checkpoint": "a b", "prompt": prompt, **REST}

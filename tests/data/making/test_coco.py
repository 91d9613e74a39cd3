"""COCO's caption annotations."""

from __future__ import annotations

import json

import pytest

from latentdiff.config.errors import InputError
from latentdiff.data.making.coco import CocoSource


def annotated(folder, **changes):
    content = {
        "images": [
            {"id": 7, "file_name": "1.png", "coco_url": "http://u/1", "flickr_url": "http://f/1", "license": 4},
            {"id": 5, "file_name": "0.png"},
            {"id": 9, "file_name": "gone.png"},
        ],
        "annotations": [
            {"image_id": 5, "id": 1, "caption": "zero"},
            {"image_id": 7, "id": 2, "caption": "one\n"},
            {"image_id": 7, "id": 3, "caption": "uno"},
        ],
        "licenses": [{"id": 4, "name": "CC BY 2.0", "url": "http://cc"}],
        **changes,
    }
    file = folder / "captions.json"
    file.write_text(json.dumps(content))
    return file


def test_every_image_has_all_its_captions_and_its_licence(pictures, made, entries):
    shards, summary = made(CocoSource(annotated(pictures), pictures))
    first, second = entries(shards)
    assert (first["captions"], first["caption"], shards.read(0, "txt")) == (["one", "uno"], "one", b"one")
    assert (first["coco_id"], first["url"], first["flickr_url"]) == (7, "http://u/1", "http://f/1")
    assert (first["license"], first["license_url"]) == ("CC BY 2.0", "http://cc")
    assert (second["caption"], second["coco_id"], "license" in second) == ("zero", 5, False)
    assert [(note["name"], note["what"]) for note in summary.notes] == [("gone.png", "missing file")]


def test_other_files_are_refused(pictures):
    with pytest.raises(InputError, match="holds no captions"):
        CocoSource(annotated(pictures, annotations=[{"image_id": 5, "category_id": 3}]), pictures)
    for wrong in ({"images": [{"id": 1}]}, {"annotations": 3}, {"images": [3]}):
        with pytest.raises(InputError, match="not a COCO annotation"):
            CocoSource(annotated(pictures, **wrong), pictures)
    with pytest.raises(InputError, match="not a folder"):
        CocoSource(annotated(pictures), pictures / "none")

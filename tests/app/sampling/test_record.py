"""Records of images that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentdiff.app.sampling.record import check_repeated, read_record
from latentdiff.config.errors import InputError

IMAGE = {"file": "0007-seed3.png", "seed": 3, "batch": [1, 4]}
RECORD = {"schema": 1, "checkpoint": "here", "steps": 4, "settings": {"batch_size": 4}, "images": [IMAGE]}
NOT_SO = "does not say how its images were made; expected a samples.json or a PNG"


def record(**changed: object) -> dict:
    return json.loads(json.dumps({**RECORD, **changed}))


def png(path: Path, text: str | None) -> Path:
    told = PngInfo()
    if text is not None:
        told.add_itxt("latentdiff", text)
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(path, pnginfo=told)
    return path


def test_both_files_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_text(json.dumps(RECORD))
    assert read_record(tmp_path / "samples.json", "card") == RECORD
    assert read_record(png(tmp_path / "a.png", json.dumps(RECORD)), "card") == RECORD


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"checkpoint": "here", "steps": 4}'])
def test_pngs_of_others_are_refused(tmp_path: Path, text: str | None) -> None:
    with pytest.raises(InputError, match=f"card: .*a.png' {NOT_SO}"):
        read_record(png(tmp_path / "a.png", text), "card")


@pytest.mark.parametrize("changed", [{"schema": 2}, {"images": []}, {"images": ["a"]}, {"images": None}])
def test_other_records_are_refused(tmp_path: Path, changed: dict) -> None:
    (tmp_path / "samples.json").write_text(json.dumps(record(**changed)))
    with pytest.raises(InputError, match=NOT_SO):
        read_record(tmp_path / "samples.json", "card")


def test_what_is_no_file_of_ours(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(InputError, match=r"card: .*a\.png' is no PNG"):
        read_record(tmp_path / "a.png", "card")
    with pytest.raises(InputError, match=r"card: .*b.png' cannot be read \(No such file"):
        read_record(tmp_path / "b.png", "card")


def test_an_image_alone_takes_its_old_place(tmp_path: Path) -> None:
    card = png(tmp_path / "a.png", json.dumps(RECORD))
    now = record(checkpoint="elsewhere", images=[{"file": "0000-seed3.png", "seed": 3, "batch": [0, 1]}])
    check_repeated(str(card), now)
    assert now["images"] == [IMAGE]
    with pytest.raises(InputError, match=r"this is not what '.*a.png' was made by: steps = 4 there, 5 here"):
        check_repeated(str(card), {**now, "steps": 5})
    with pytest.raises(InputError, match=r"made by: images\.0007-seed3\.png\.sha256\.image = null there"):
        check_repeated(str(card), {**now, "images": [{**IMAGE, "sha256": {"image": "of another"}}]})


@pytest.mark.parametrize(
    "changed", [{"file": "../../a.png"}, {"file": None}, {"batch": [4, 4]}, {"batch": [0, 10**9]}, {"batch": "all"}]
)
def test_a_strangers_place_is_refused(tmp_path: Path, changed: dict) -> None:
    card = png(tmp_path / "a.png", json.dumps(record(images=[{**IMAGE, **changed}])))
    with pytest.raises(InputError, match=r"has no file or batch as sample\.py writes them"):
        check_repeated(str(card), record())

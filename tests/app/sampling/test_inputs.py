"""Which pictures pass as masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from latentdiff.app.sampling.inputs import read_fields
from latentdiff.app.sampling.request import Reads, Scene


@pytest.mark.parametrize("name", ["mask.png", "mask.jpg"])
def test_soft_edges_and_the_noise_of_jpeg_pass(tmp_path: Path, name: str) -> None:
    drawn = Image.new("RGB", (256, 256))
    ImageDraw.Draw(drawn).ellipse((60, 60, 200, 180), fill="white")
    small = drawn.resize((32, 32), Image.Resampling.LANCZOS)
    small.save(tmp_path / name)
    small.save(tmp_path / "image.png")
    scene = Scene(
        prompt=None,
        negative_prompt=None,
        label=None,
        map=None,
        image=tmp_path / "image.png",
        mask=tmp_path / name,
    )
    reads = Reads(captions=False, labels=False, classes=None, class_names=None, fields={})
    mask = read_fields(scene, reads, (32, 32))["mask"]
    assert mask[0, 15, 16] == 1
    assert mask[0, 0, 0] == 0
    assert mask.float().mean() == pytest.approx(np.pi * 70 * 60 / 256**2, abs=0.01)

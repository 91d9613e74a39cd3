import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from latentdiff.evaluation.grid import COMPARISON, FONT_SIZE, comparison, image_grid, save_grid, wrapped


def colours(n, height=4, width=6):
    return torch.stack([torch.full((3, height, width), 20 * i, dtype=torch.uint8) for i in range(n)])


def test_images_stand_row_by_row():
    grid = image_grid(colours(5), columns=3, pad=2)
    assert grid.shape == (3, 2 * (4 + 2) + 2, 3 * (6 + 2) + 2)
    for i in range(5):
        top, left = 2 + (i // 3) * 6, 2 + (i % 3) * 8
        assert set(grid[:, top : top + 4, left : left + 6].flatten().tolist()) == {20 * i}
    assert set(grid[:, 8:12, 18:24].flatten().tolist()) == {255}
    assert set(grid[:, :2].flatten().tolist()) == {255}


def test_png_holds_the_enlarged_images(tmp_path):
    images = torch.randint(0, 256, (3, 3, 5, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    save_grid(tmp_path / "new" / "grid.png", images, columns=2, scale=3, pad=1)
    read = np.array(Image.open(tmp_path / "new" / "grid.png"))
    assert read.shape == (2 * 16 + 1, 2 * 16 + 1, 3)
    third = read[17:32, 1:16][::3, ::3]
    assert np.array_equal(third, images[2].permute(1, 2, 0).numpy())
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["grid.png"]


def test_captions_stand_under_their_images(tmp_path):
    images = colours(2, 32, 32)
    save_grid(tmp_path / "g.png", images, captions=["a red circle on a navy background", ""], columns=2, scale=3, pad=2)
    read = np.array(Image.open(tmp_path / "g.png"))
    first, second = read[98:-2, 2:98], read[98:-2, 100:196]
    assert first.shape == second.shape
    assert (first < 128).any(axis=(1, 2)).sum() > FONT_SIZE
    assert (second == 255).all()
    assert (read[2:98, 100:196] == 20).all()


def test_wrapping_keeps_every_letter_and_the_width():
    font = ImageFont.load_default(FONT_SIZE)
    text = "a small yellow star left of a large Donaudampfschifffahrtsgesellschaftskapitaen"
    lines = wrapped(text, 90, font)
    assert all(font.getlength(line) <= 90 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrapped("one two", 1000, font) == ["one two"]
    assert wrapped("", 90, font) == []


def test_a_comparison_shows_input_reconstruction_and_four_times_the_difference(tmp_path):
    originals, rebuilt = torch.full((2, 3, 4, 4), 100).byte(), torch.full((2, 3, 4, 4), 100).byte()
    rebuilt[0], rebuilt[1] = 110, 30
    cells = comparison(torch.cat([originals, originals[:1]]), torch.cat([rebuilt, rebuilt[:1]]), columns=2)
    values = [cell.unique().tolist() for cell in cells]
    assert values == [[100], [100], [110], [30], [168], [0], [100], [255], [110], [255], [168], [255]]
    save_grid(tmp_path / "g.png", cells, columns=2, text=COMPARISON)
    assert Image.open(tmp_path / "g.png").text == {
        "Description": "rows: input, reconstruction, 127.5 + 4 (reconstruction - input)"
    }
    with pytest.raises(ValueError, match="one shape"):
        comparison(originals, rebuilt[:1], columns=2)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="uint8 images"):
        image_grid(colours(2).float(), 2)
    with pytest.raises(ValueError, match="N >= 1"):
        image_grid(colours(2)[:0], 2)
    with pytest.raises(ValueError, match="1 for 2 images"):
        save_grid(tmp_path / "g.png", colours(2), captions=["one"])

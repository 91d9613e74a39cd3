import numpy as np
import torch
from PIL import Image

from latentdiff.evaluation.first_images import picture_of_reconstructions, picture_of_samples
from latentdiff.evaluation.inputs import HOLE, beside_inputs, coloured, condition_pictures, condition_texts
from latentdiff.types import UNLABELLED, Batch


def batch(count=2, **fields):
    image = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    captions = [f"caption {i}" for i in range(count)]
    return Batch(keys=captions, image=image, caption=captions, label=torch.arange(count), **fields)


MASK = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
MASK[..., 4:] = 1
MAPS = torch.zeros(2, 8, 8, dtype=torch.uint8)
MAPS[:, 4:] = 3
SMALL = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)


def test_pictures_are_those_of_the_fields_in_their_order():
    assert condition_pictures(batch()) == []
    holed, maps, small = condition_pictures(batch(mask=MASK, segmentation=MAPS, low_res=SMALL))
    assert torch.equal(holed[1, :, :, :4], torch.ones(3, 8, 4, dtype=torch.uint8))
    assert (holed[:, :, :4, 4:] == HOLE[1]).all()
    assert (holed[:, :, 4:, 4:] == HOLE[0]).all()
    assert torch.equal(maps, coloured(MAPS))
    assert torch.equal(small, SMALL.repeat_interleave(4, 2).repeat_interleave(4, 3))
    assert {picture.dtype for picture in (holed, maps, small)} == {torch.uint8}


def test_without_an_image_the_size_is_said_or_that_of_the_inputs():
    hole = condition_pictures(Batch(keys=["a", "b"], mask=MASK))[0]
    assert torch.equal(hole, (MASK * 255).expand(-1, 3, -1, -1))
    assert condition_pictures(Batch(keys=["a", "b"], low_res=SMALL))[0].shape == (2, 3, 2, 2)
    assert condition_pictures(Batch(keys=["a", "b"], low_res=SMALL), (16, 16))[0].shape == (2, 3, 16, 16)


def test_every_class_has_a_colour_of_its_own():
    colours = coloured(torch.arange(256, dtype=torch.uint8).view(1, 16, 16))[0].flatten(1).T
    assert len({tuple(colour) for colour in colours.tolist()}) == 256
    assert colours[UNLABELLED].tolist() == [255, 255, 255]
    near = (colours[:20, None].float() - colours[None, :20].float()).norm(dim=-1) + 1e6 * torch.eye(20)
    assert near.min() > 20


def test_texts_are_what_the_model_reads():
    one = batch()
    one.label[1] = -1
    assert condition_texts(one, captions=False, labels=False) is None
    assert condition_texts(one, captions=True, labels=False) == ["caption 0", "caption 1"]
    assert condition_texts(one, captions=False, labels=True) == ["class 0", "no class"]
    assert condition_texts(one, captions=True, labels=True, class_names=["cat"]) == [
        "caption 0, cat",
        "caption 1, no class",
    ]
    assert condition_texts(Batch(keys=["a"]), captions=True, labels=True) is None


def test_each_image_stands_right_of_its_own_inputs():
    images = torch.full((2, 3, 8, 8), 9, dtype=torch.uint8)
    cells, texts, group = beside_inputs(images, batch(mask=MASK, low_res=SMALL), ["one", "two"])
    assert (group, cells.shape, texts) == (3, (6, 3, 8, 8), ["", "", "one", "", "", "two"])
    assert [int(cell[0, 0, 0]) for cell in cells] == [0, 0, 9, 1, 12, 9]
    cells, texts, group = beside_inputs(images, batch(), None)
    assert (group, texts) == (1, None)
    assert torch.equal(cells, images)


def read(path):
    return np.array(Image.open(path))


def test_samples_stand_beside_what_they_were_made_from(tmp_path):
    images = torch.arange(100, 103, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 8, 8)
    made_for = batch(3, mask=MASK[:1].expand(3, 1, 8, 8))
    picture_of_samples(tmp_path / "grid.png", images, made_for, captions=False, labels=False)
    pixels = read(tmp_path / "grid.png")
    cell = 128 + 4  # enlarged 16 times
    assert pixels.shape == (cell + 4, 6 * cell + 4, 3)
    across = [int(pixels[10, 4 + i * cell, 0]) for i in range(6)]
    assert across == [0, 100, 1, 101, 2, 102]
    picture_of_samples(tmp_path / "named.png", images, made_for, captions=True, labels=True)
    assert read(tmp_path / "named.png").shape[0] > pixels.shape[0]


def test_reconstructions_stand_below_their_originals(tmp_path):
    picture_of_reconstructions(tmp_path / "grid.png", torch.full((2, 3, 8, 8), 50, dtype=torch.uint8), batch())
    pixels = read(tmp_path / "grid.png")
    assert [int(pixels[10 + row * 132, 140, 0]) for row in range(3)] == [1, 50, 255]

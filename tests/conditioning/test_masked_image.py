from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentdiff.conditioning.masked_image import MaskedImage
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.types import Batch

FACTOR, MEAN, STD = 4, 0.5, 2.0


class Averaging(nn.Module):
    """A first stage whose latent is the mean colour of each cell of pixels, with a wide posterior."""

    latent_channels, factor = 3, FACTOR

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def encode(self, image):
        mean = self.scale * F.avg_pool2d(image, FACTOR)
        return SimpleNamespace(mean=mean, std=torch.full_like(mean, 5.0))

    def decode(self, z):
        return F.interpolate(z, scale_factor=FACTOR)


@pytest.fixture
def codec():
    return LatentCodec(autoencoder=Averaging(), mean=MEAN, std=STD)


def batch(mask: torch.Tensor, seed: int = 0) -> Batch:
    image = torch.randint(256, (len(mask), 3, *mask.shape[-2:]), generator=torch.Generator().manual_seed(seed))
    return Batch(keys=[str(i) for i in range(len(mask))], image=image.to(torch.uint8), mask=mask)


def mask_of(*holes: tuple[slice, slice], size: int = 16) -> torch.Tensor:
    mask = torch.zeros(1, 1, size, size, dtype=torch.uint8)
    for rows, columns in holes:
        mask[0, 0, rows, columns] = 1
    return mask


def test_a_cell_is_hole_where_any_of_its_pixels_is(codec):
    """A whole cell, one pixel in a cell's last corner, and a stroke between the pixels that nearest would take."""
    mask = mask_of((slice(0, 4), slice(0, 4)), (slice(7, 8), slice(7, 8)), (slice(13, 14), slice(0, 16)))
    cells = MaskedImage()(batch(mask), codec).spatial[0, 0]
    assert cells.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    assert F.interpolate(mask, size=(4, 4))[0, 0].tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_known_cells_have_the_image_s_latent_and_the_hole_is_gray(codec):
    given = batch(mask_of((slice(4, 12), slice(4, 12))))
    spatial = MaskedImage()(given, codec).spatial
    whole = codec.encode(given.image / 127.5 - 1.0)
    hole = spatial[:, :1].bool().expand(-1, 3, -1, -1)
    assert torch.equal(spatial[:, 1:][~hole], whole[~hole])
    assert torch.equal(spatial[:, 1:][hole], torch.full_like(whole[hole], -MEAN / STD))
    decoded, pixels = codec.decode(spatial[:, 1:]), given.mask.bool().expand(-1, 3, -1, -1)
    assert decoded[pixels].abs().max() == 0


def test_a_cell_that_is_partly_known_keeps_what_is_known(codec):
    given = batch(mask_of((slice(0, 2), slice(0, 4))))
    given.image.fill_(255)
    spatial = MaskedImage()(given, codec).spatial[0, :, 0, 0]
    assert spatial.tolist() == pytest.approx([1.0, *[(0.5 - MEAN) / STD] * 3])


def test_what_lies_in_the_hole_changes_nothing(codec):
    given = batch(mask_of((slice(2, 11), slice(3, 9))))
    other = batch(given.mask, seed=1)
    other.image = torch.where(given.mask.bool(), other.image, given.image)
    assert not torch.equal(given.image, other.image)
    assert torch.equal(MaskedImage()(given, codec).spatial, MaskedImage()(other, codec).spatial)


def test_null_is_all_to_be_made(codec):
    given = batch(mask_of((slice(0, 4), slice(0, 4))).expand(3, -1, -1, -1))
    null = MaskedImage().null(given, codec).spatial
    everything = batch(torch.ones_like(given.mask))
    assert null.shape == (3, 4, 4, 4)
    assert torch.equal(null, MaskedImage()(everything, codec).spatial)
    assert (null[:, :1] == 1).all()


def test_dropped_samples_have_the_null_condition(codec):
    conditioner, given = MaskedImage(drop=0.5), batch(mask_of((slice(0, 9), slice(0, 5))).expand(32, -1, -1, -1))
    draws = Draws(seed=0, number=0, start=0, count=32, total=32)
    gone = conditioner.dropped(draws)["mask"]
    expected = conditioner(given, codec).where(~gone, conditioner.null(given, codec))
    assert torch.equal(conditioner(given, codec, draws).spatial, expected.spatial)
    assert 6 < gone.sum() < 26
    assert torch.equal(MaskedImage()(given, codec, draws).spatial, conditioner.alone(given, codec)["mask"].spatial)


def test_nothing_is_learned_through_the_codec(codec):
    for weight in (codec.autoencoder.scale, codec.mean):
        weight.requires_grad_(True)
    given = batch(mask_of((slice(0, 4), slice(0, 4))))
    assert not MaskedImage()(given, codec).spatial.requires_grad
    assert not MaskedImage().null(given, codec).spatial.requires_grad


def test_bad_input(codec):
    given = batch(mask_of((slice(0, 4), slice(0, 4))))
    with pytest.raises(InputError, match="reads mask, but the batch has none"):
        MaskedImage()(Batch(keys=["a"], image=given.image), codec)
    with pytest.raises(InputError, match="reads image, but the batch has none"):
        MaskedImage()(Batch(keys=["a"], mask=given.mask), codec)
    with pytest.raises(InputError, match="first stage's codec"):
        MaskedImage()(given)
    with pytest.raises(InputError, match=r"masks of shape \(1, 1, 16, 16\).* got \(1, 1, 8, 16\)"):
        MaskedImage()(Batch(keys=["a"], image=given.image, mask=given.mask[:, :, :8]), codec)

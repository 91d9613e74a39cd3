import pytest
import torch
from torch.nn import functional as F

from latentdiff.config.errors import InputError
from latentdiff.metrics.patch_pca import PatchPca
from latentdiff.metrics.reconstruction import PSNR_CEILING, psnr
from latentdiff.metrics.rows import JoinedRows
from latentdiff.types import Batch


def of_rank(rank, n=6, factor=4, side=16, seed=0):
    """Images whose patches lie in an affine space of that dimension: grey plus whole multiples of fixed patterns."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randint(-8, 9, (rank, 3 * factor**2), generator=torch.Generator().manual_seed(99))
    places = (n, side // factor, side // factor)
    x = 128 + torch.randint(-4, 5, (*places, rank), generator=generator) @ patterns
    return F.pixel_shuffle(x.permute(0, 3, 1, 2).float(), factor).clamp(0, 255).byte()


def noise(n, side, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), generator=generator, dtype=torch.uint8)


def test_patches_of_a_known_rank_come_back_exactly_with_as_many_components_and_not_with_fewer():
    fitted, held_back = of_rank(3), of_rank(3, seed=1)
    enough = PatchPca(images=fitted.split(2), factor=4, components=3)
    assert torch.equal(enough.reconstruct(held_back), held_back)
    fewer = PatchPca(images=[fitted], factor=4, components=2)
    assert not torch.equal(fewer.reconstruct(held_back), held_back)


def test_error_is_the_variance_left_out():
    """On the data of the fit itself: the sum of the smallest eigenvalues, here by an SVD of the patches."""
    images = noise(8, 32) // 2 + 64  # nothing is clamped
    patches = F.pixel_unshuffle(images.double(), 4).permute(0, 2, 3, 1).flatten(0, 2)
    left_out = torch.linalg.svdvals(patches - patches.mean(0))[5:].square().sum() / patches.numel()
    found = PatchPca(images=images.split(3), factor=4, components=5).reconstruct(images)
    error = (found.double() - images.double()).square().mean()
    assert error.item() == pytest.approx(left_out.item() + 1 / 12, rel=2e-3)  # and the rounding's


def test_mean_psnr_over_images_of_another_size_and_split():
    pca = PatchPca(images=[noise(4, 16)], factor=4, components=6)
    images = noise(5, 32, seed=1)
    parts = []
    for start, some in ((3, images[3:]), (0, images[:3])):
        parts.append((start, pca.measure(some, Batch(keys=["k"] * len(some), image=some, start=start))))
    expected = psnr(pca.reconstruct(images), images).mean().item()
    assert pca.result(JoinedRows(parts)) == {"patch_pca_psnr": pytest.approx(expected, abs=1e-4)}
    assert expected < PSNR_CEILING
    assert pca.describe() == {"factor": 4, "components": 6, "fitted_on_images": 4}


def test_all_components_are_lossless():
    images = noise(8, 16)
    assert torch.equal(PatchPca(images=[images], factor=2, components=12).reconstruct(images), images)


def test_refusals():
    with pytest.raises(InputError, match="at least one image"):
        PatchPca(images=[], factor=4, components=4)
    with pytest.raises(InputError, match="of at least 1; got 4, 0"):
        PatchPca(images=[noise(1, 16)], factor=4, components=0)


def test_sides_that_are_no_multiple_are_refused():
    with pytest.raises(InputError, match="factor 4 needs sides that are multiples, got 6x8"):
        PatchPca(images=[torch.zeros(1, 3, 6, 8, dtype=torch.uint8)], factor=4, components=2)

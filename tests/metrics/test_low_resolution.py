from dataclasses import replace

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.metrics.low_resolution import LowResolutionConsistency, resized
from latentdiff.metrics.reconstruction import PSNR_CEILING, psnr


def test_the_originals_are_consistent_to_the_last_bit(measured):
    assert measured(LowResolutionConsistency(), cuts=(7,)) == {"low_res_psnr": PSNR_CEILING, "psnr": PSNR_CEILING}


def test_what_is_invented_between_the_pixels_costs_fidelity_alone(scenes, measured):
    """Bicubic enlargement is nearly consistent and far from the original; another scene is neither."""
    enlarged = measured(LowResolutionConsistency(), resized(scenes.low_res, (64, 64)))
    assert enlarged["low_res_psnr"] > 35
    assert enlarged["psnr"] < 32
    other = measured(LowResolutionConsistency(), scenes.image.roll(1, 0))
    assert other["low_res_psnr"] < 20


def test_values_are_those_of_psnr(scenes, measured):
    images = scenes.image ^ 8
    result = measured(LowResolutionConsistency(), images)
    expected = psnr(resized(images, (16, 16)), scenes.low_res).double().mean()
    assert result["low_res_psnr"] == pytest.approx(expected.item(), abs=1e-6)
    assert result["psnr"] == pytest.approx(psnr(images, scenes.image).double().mean().item(), abs=1e-6)
    alone = measured(LowResolutionConsistency(), images, replace(scenes, image=None))
    assert alone == {"low_res_psnr": result["low_res_psnr"]}


def test_resizing_keeps_flat_images_and_cuts_overshoot_off():
    flat = torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)
    for size in ((2, 2), (8, 8), (20, 12)):
        assert torch.equal(resized(flat, size), torch.full((1, 3, *size), 77, dtype=torch.uint8))
    edge = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    edge[..., 4:] = 255
    large = resized(edge, (32, 32))
    assert torch.equal(large[..., :8], torch.zeros(1, 3, 32, 8, dtype=torch.uint8))
    assert torch.equal(large.flip(-1), 255 - large)  # overshoot is cut off and not wrapped around


def test_it_needs_the_small_images(scenes):
    with pytest.raises(InputError, match="small images"):
        LowResolutionConsistency().measure(scenes.image, replace(scenes, low_res=None))

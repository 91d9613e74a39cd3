from dataclasses import replace

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.metrics.known_region import KnownRegion, known_psnr
from latentdiff.metrics.reconstruction import PSNR_CEILING, psnr
from latentdiff.metrics.rows import JoinedRows
from latentdiff.types import Batch


def test_errors_in_the_hole_do_not_count(scenes, measured):
    images = scenes.image.clone()
    images[..., 32:] = 255 - images[..., 32:]
    assert measured(KnownRegion(), images) == {"psnr": PSNR_CEILING}
    images[..., 0, 0] ^= 1
    assert measured(KnownRegion(), images)["psnr"] == pytest.approx(10 * torch.tensor(255.0**2 * 2048).log10().item())


def test_without_a_hole_it_is_the_psnr(scenes):
    noisy = scenes.image ^ 3
    nothing = torch.zeros_like(scenes.mask)
    assert torch.allclose(known_psnr(noisy, scenes.image, nothing), psnr(noisy, scenes.image), atol=1e-4)


def test_ten_times_the_error_is_twenty_decibels_below_the_reconstruction():
    original = torch.full((3, 3, 8, 8), 100, dtype=torch.uint8)
    mask = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    mask[2] = 1  # nothing known: it is no part of the means
    batch = Batch(list("abc"), image=original, mask=mask)
    metric = KnownRegion()
    own = metric.measure(original + 50, batch)
    assert set(metric.result(JoinedRows([(0, own)]))) == {"psnr"}
    beside = metric.measure_reconstructions(original + 5, batch)
    result = metric.result(JoinedRows([(0, {**own, **{f"rebuilt.{name}": v for name, v in beside.items()}})]))
    assert result["psnr"] == pytest.approx(20 * torch.tensor(5.1).log10().item(), abs=1e-4)
    assert result["difference"] == pytest.approx(-20, abs=1e-4)
    assert result["reconstructions"] == pytest.approx(result["psnr"] + 20, abs=1e-4)


def test_what_it_needs(scenes):
    for name in ("image", "mask"):
        with pytest.raises(InputError, match="lacks one of them"):
            KnownRegion().measure(scenes.image, replace(scenes, **{name: None}))

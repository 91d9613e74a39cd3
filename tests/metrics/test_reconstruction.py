import math

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.metrics.reconstruction import Psnr, psnr
from latentdiff.types import Batch


def test_constant_offsets_in_closed_form():
    black = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    offset = torch.stack([torch.full((3, 4, 4), v, dtype=torch.uint8) for v in (255, 51, 0)])
    values = psnr(offset, black)
    assert values[0] == pytest.approx(0.0, abs=1e-5)
    assert values[1] == pytest.approx(-20 * math.log10(0.2), abs=1e-4)
    assert values[2] == math.inf


def test_float_and_uint8_are_the_same_scale():
    x = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    y = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    assert torch.allclose(psnr(x.float() / 127.5 - 1, y), psnr(x, y), atol=1e-4)
    assert torch.allclose(psnr(x, y), psnr(y, x))


def test_mean_over_images_not_over_pixels():
    metric = Psnr()
    reference = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    made = torch.stack([torch.full((3, 4, 4), v, dtype=torch.uint8) for v in (255, 51, 51)])
    metric.update(made[1:], Batch(keys=["b", "c"], image=reference[1:], start=1))
    metric.update(made[:1], Batch(keys=["a"], image=reference[:1], start=0))
    assert metric.compute()["psnr"] == pytest.approx((0.0 + 2 * 13.9794) / 3, abs=1e-3)


def test_refusals():
    with pytest.raises(ValueError, match="of one shape"):
        psnr(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))
    with pytest.raises(InputError, match="batch's own images"):
        Psnr().update(torch.zeros(1, 3, 4, 4), Batch(keys=["a"]))

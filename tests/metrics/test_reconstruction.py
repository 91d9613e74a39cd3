import math

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from latentdiff.config.errors import InputError
from latentdiff.metrics.paired import Fidelity
from latentdiff.metrics.reconstruction import PSNR_CEILING, Psnr, Ssim, psnr, ssim
from latentdiff.metrics.rows import JoinedRows
from latentdiff.types import Batch


def noise(n, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


def disturbed(images, strength, seed=1):
    shift = strength * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images.float() + shift).round().clamp(0, 255).byte()


def plain(n, value, size=16):
    return torch.full((n, 3, size, size), value, dtype=torch.uint8)


def test_constant_offsets_in_closed_form():
    black = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    offset = torch.stack([torch.full((3, 4, 4), v, dtype=torch.uint8) for v in (255, 51, 0)])
    values = psnr(offset, black)
    assert values[0] == pytest.approx(0.0, abs=1e-5)
    assert values[1] == pytest.approx(-20 * math.log10(0.2), abs=1e-4)
    assert values[2] == math.inf


def test_float_and_uint8_are_the_same_scale():
    x, y = noise(2, 8, 8), noise(2, 8, 8, seed=1)
    assert torch.allclose(psnr(x.float() / 127.5 - 1, y), psnr(x, y), atol=1e-4)
    assert torch.allclose(psnr(x, y), psnr(y, x))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (16, 24), (6, 11)])
@pytest.mark.parametrize("strength", [1, 20, 100])
def test_ssim_is_torchmetrics(height, width, strength):
    x = noise(3, height, width)
    y = disturbed(x, strength)
    oracle = structural_similarity_index_measure(y.float(), x.float(), data_range=255.0, reduction="none")
    torch.testing.assert_close(ssim(y, x), oracle, atol=2e-5, rtol=0)
    torch.testing.assert_close(ssim(y, x), ssim(x, y), atol=1e-6, rtol=0)


def test_ssim_closed_forms():
    """Without structure only the comparison of the means is left: (2 a b + c1) / (a^2 + b^2 + c1)."""
    x = noise(2, 16, 16)
    torch.testing.assert_close(ssim(x, x), torch.ones(2), atol=1e-6, rtol=0)
    a, b, c1 = 200.0, 100.0, 2.55**2
    expected = torch.full((2,), (2 * a * b + c1) / (a**2 + b**2 + c1))
    torch.testing.assert_close(ssim(plain(2, 200), plain(2, 100)), expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize(("metric", "each", "name"), [(Psnr, psnr, "psnr"), (Ssim, ssim, "ssim")], ids=["psnr", "ssim"])
def test_mean_over_images_whatever_the_batches(metric, each, name):
    x = noise(5, 16, 16)
    y = torch.cat([disturbed(x[:2], 5), disturbed(x[2:], 60)])
    results = []
    for chunks in ([(0, 5)], [(3, 5), (0, 3)]):
        one, parts = metric(), []
        for start, stop in chunks:
            keys = [str(i) for i in range(start, stop)]
            parts.append((start, one.measure(y[start:stop], Batch(keys=keys, image=x[start:stop], start=start))))
        results.append(one.result(JoinedRows(parts)))
    assert results[0] == results[1] == {name: pytest.approx(each(y, x).mean().item(), abs=1e-5)}


def test_an_exact_image_does_not_make_the_mean_infinite():
    batch = Batch(keys=["a", "b"], image=torch.cat([plain(1, 9), plain(1, 60)]))
    rows = JoinedRows([(0, Psnr().measure(plain(2, 9), batch))])
    assert Psnr().result(rows)["psnr"] == pytest.approx((PSNR_CEILING + 20 * math.log10(255 / 51)) / 2, abs=1e-4)


def test_several_under_one_name():
    metric, x = Fidelity(metrics=[Psnr(), Ssim()]), noise(2, 16, 16)
    rows = JoinedRows([(0, metric.measure(disturbed(x, 9), Batch(keys=["a", "b"], image=x)))])
    assert list(metric.result(rows)) == ["psnr", "ssim"]


def test_refusals():
    with pytest.raises(ValueError, match="of one shape"):
        psnr(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))
    with pytest.raises(InputError, match=r"at least 6 pixels; got \(5, 16\)"):
        ssim(noise(1, 5, 16), noise(1, 5, 16))
    with pytest.raises(InputError, match="psnr needs the batch's own images"):
        Psnr().measure(torch.zeros(1, 3, 4, 4), Batch(keys=["a"]))

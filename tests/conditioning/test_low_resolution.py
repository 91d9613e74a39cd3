import pytest
import torch
import torch.nn.functional as F

from latentdiff.conditioning.low_resolution import LowResolution
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.types import Batch


class Codec:
    def __init__(self, factor: int = 4):
        self.channels, self.factor = 4, factor


def batch(count: int = 2, side: int = 8, image: tuple[int, int] | None = None) -> Batch:
    small = torch.randint(256, (count, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    large = None if image is None else torch.zeros(count, 3, *image, dtype=torch.uint8)
    return Batch(keys=[f"k{i}" for i in range(count)], low_res=small, image=large)


def draws(count: int, number: int = 0, start: int = 0, total: int | None = None) -> Draws:
    return Draws(seed=1, number=number, start=start, count=count, total=total or count)


def test_a_small_image_of_the_latents_size_goes_in_as_it_is():
    given = batch(image=(32, 32))
    spatial = LowResolution(factor=4)(given, Codec(4)).spatial
    assert torch.equal(spatial, given.low_res / 127.5 - 1.0)


@pytest.mark.parametrize(("factor", "side"), [(2, 4), (8, 16)])
def test_another_size_is_resized_bicubically(factor, side):
    given = batch()
    spatial = LowResolution(factor=factor)(given, Codec(4)).spatial
    expected = F.interpolate(given.low_res / 127.5 - 1.0, size=(side, side), mode="bicubic", antialias=True)
    torch.testing.assert_close(spatial, expected)
    given.low_res.fill_(200)
    flat = LowResolution(factor=factor)(given, Codec(4)).spatial
    torch.testing.assert_close(flat, torch.full_like(flat, 200 / 127.5 - 1.0))


def test_null_is_gray_at_the_full_level():
    given = batch(3)
    assert torch.equal(LowResolution(factor=4).null(given, Codec()).spatial, torch.zeros(3, 3, 8, 8))
    null = LowResolution(factor=4, max_noise=0.5).null(given, Codec()).spatial
    assert torch.equal(null, torch.cat([torch.zeros(3, 3, 8, 8), torch.ones(3, 1, 8, 8)], dim=1))


def test_training_adds_noise_of_a_uniform_level_that_is_told():
    conditioner, given = LowResolution(factor=4, max_noise=0.6), batch(256)
    given.low_res.copy_(given.low_res[:1].expand(256, -1, -1, -1))
    spatial = conditioner(given, Codec(), draws(256)).spatial
    level, clean = spatial[:, 3, 0, 0], given.low_res / 127.5 - 1.0
    assert (spatial[:, 3:] == level.view(-1, 1, 1, 1)).all()
    places = (level.sort().values / 0.6).double()
    assert (places - (torch.arange(256) + 0.5) / 256).abs().max() < 1.63 / 16  # Kolmogorov-Smirnov at 1 %
    noise = (spatial[:, :3] - (1 - level**2).sqrt().view(-1, 1, 1, 1) * clean) / level.view(-1, 1, 1, 1)
    values = noise[level > 0.01].flatten()
    assert abs(values.mean()) < 4 / len(values) ** 0.5
    assert abs(values.var() - 1) < 4 * (2 / len(values)) ** 0.5


def test_the_noise_takes_the_share_of_the_variance_that_the_level_says():
    conditioner, given = LowResolution(factor=4, max_noise=1.0), batch(200)
    scale = (given.low_res / 127.5 - 1.0).std()
    spatial = conditioner(given, Codec(), draws(200)).spatial
    level = spatial[:, 3:]
    expected = ((1 - level**2) * scale**2 + level**2).mean()
    assert spatial[:, :3].var().item() == pytest.approx(expected.item(), rel=0.02)


def test_each_sample_has_its_own_level_and_noise_however_the_batch_is_split():
    conditioner, given = LowResolution(factor=4, max_noise=0.6, drop=0.3), batch(8)
    whole = conditioner(given, Codec(), draws(8)).spatial
    halves = [conditioner(given.rows(i, i + 4), Codec(), draws(4, start=i, total=8)).spatial for i in (0, 4)]
    assert torch.equal(torch.cat(halves), whole)
    assert len(whole[:, 3, 0, 0].unique()) > 2
    assert not torch.equal(conditioner(given, Codec(), draws(8, number=1)).spatial, whole)


def test_outside_training_the_level_is_fixed_and_the_noise_is_the_key_s():
    given = batch(4)
    clean = given.low_res / 127.5 - 1.0
    spatial = LowResolution(factor=4, max_noise=0.6)(given, Codec()).spatial
    assert torch.equal(spatial[:, :3], clean)
    assert (spatial[:, 3:] == 0).all()
    conditioner = LowResolution(factor=4, max_noise=0.6, level=0.6)
    spatial = conditioner(given, Codec()).spatial
    noise = (spatial[:, :3] - 0.8 * clean) / 0.6
    assert abs(noise.var() - 1) < 4 * (2 / noise.numel()) ** 0.5
    assert (spatial[:, 3:] == 0.6).all()
    backwards = Batch(keys=given.keys[::-1], low_res=given.low_res.flip(0))
    assert torch.equal(conditioner(backwards, Codec()).spatial.flip(0), spatial)
    assert not torch.allclose(noise[0], noise[1])


@pytest.mark.parametrize("max_noise", [0.0, 0.5])
def test_dropped_samples_have_the_null_condition(max_noise):
    conditioner, given = LowResolution(factor=4, drop=0.5, max_noise=max_noise), batch(32)
    gone = conditioner.dropped(draws(32))["low_res"]
    kept = LowResolution(factor=4, max_noise=max_noise)(given, Codec(), draws(32))
    expected = kept.where(~gone, conditioner.null(given, Codec()))
    assert torch.equal(conditioner(given, Codec(), draws(32)).spatial, expected.spatial)
    assert 6 < gone.sum() < 26
    alone = conditioner.alone(given, Codec())["low_res"].spatial
    assert torch.equal(alone, conditioner(given, Codec()).spatial)


def test_bad_input():
    conditioner = LowResolution(factor=4)
    with pytest.raises(InputError, match=r"reads low res, but the batch has none: add .*Degraded"):
        conditioner(Batch(keys=["a"]), Codec())
    with pytest.raises(InputError, match="first stage's codec"):
        conditioner(batch())
    for size in ((8, 8), (4, 4), (16, 32)):  # as large as the image, larger, and of another factor
        with pytest.raises(InputError, match=r"over the factor 4, got \(8, 8\)"):
            conditioner(batch(image=size), Codec())
    with pytest.raises(InputError, match="factor 3, got 32 x 32"):
        conditioner(batch(), Codec(3))
    with pytest.raises(InputError, match="at least 2"):
        LowResolution(factor=1)
    for max_noise, level in ((0.0, 0.1), (1.5, 0.0), (0.5, -0.1)):
        with pytest.raises(InputError, match="0 <= level <= max_noise <= 1"):
            LowResolution(factor=4, max_noise=max_noise, level=level)

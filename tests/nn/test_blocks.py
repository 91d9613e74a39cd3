import math

import pytest
import torch
import torch.nn.functional as F

from latentdiff.nn.embeddings import timestep_embedding
from latentdiff.nn.norms import GroupNorm
from latentdiff.nn.resnet import AsymmetricDownsample, Downsample, ResBlock, ResnetBlock, Upsample


def test_timestep_embedding_is_cosines_then_sines():
    e = timestep_embedding(torch.tensor([0.0, 250.5]), 6)
    frequencies = [10_000 ** (-i / 3) for i in range(3)]
    expected = [math.cos(250.5 * f) for f in frequencies] + [math.sin(250.5 * f) for f in frequencies]
    torch.testing.assert_close(e[0], torch.tensor([1.0, 1, 1, 0, 0, 0]))
    torch.testing.assert_close(e[1], torch.tensor(expected), atol=1e-4, rtol=0)


def test_an_odd_embedding_ends_with_zero():
    assert timestep_embedding(torch.tensor([3.0]), 7)[0, -1] == 0


@pytest.mark.parametrize(("channels", "groups"), [(16, 16), (24, 8), (32, 32), (128, 32), (320, 32), (960, 32)])
def test_groups_of_small_and_published_widths(channels, groups):
    assert GroupNorm(channels).num_groups == groups


def test_statistics_are_float32_under_autocast():
    # with bfloat16 statistics the mean of 1000 +- 1 would be lost
    x = (1000 + 8 * torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))).bfloat16()
    norm = GroupNorm(8, 2)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    torch.testing.assert_close(y.float(), F.group_norm(x.float(), 2), atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("channels", [8, 12])
def test_unet_block_starts_as_its_skip_path(channels):
    block = ResBlock(in_channels=8, out_channels=channels, embedding=6, norm_groups=4)
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x, torch.ones(2, 6)), block.skip_connection(x))


@pytest.mark.parametrize(("resample", "shape"), [("up", (8, 12)), ("down", (2, 3))])
def test_a_block_that_resamples_starts_as_its_resampled_skip_path(resample, shape):
    block = ResBlock(in_channels=8, out_channels=8, embedding=6, norm_groups=4, resample=resample)
    x = torch.randn(2, 8, 4, 6, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(x, size=shape, mode="nearest") if resample == "up" else F.adaptive_avg_pool2d(x, shape)
    torch.testing.assert_close(block(x, torch.ones(2, 6)), expected)


def test_the_embedding_scales_and_shifts_the_second_norm():
    block = ResBlock(in_channels=8, out_channels=8, embedding=6, norm_groups=4, scale_shift=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x, emb = (torch.randn(*shape, generator=generator) for shape in ((2, 8, 4, 4), (2, 6)))
    scale, shift = block.emb_layers[1](F.silu(emb)).split(8, dim=1)
    y = block.in_layers[2](F.silu(block.in_layers[0](x)))
    y = block.out_layers[0](y) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    torch.testing.assert_close(block(x, emb), x + block.out_layers[3](F.silu(y)))


def test_the_last_convolution_off_leaves_the_autoencoder_block_its_shortcut():
    block = ResnetBlock(in_channels=8, out_channels=12, norm_groups=4)
    torch.nn.init.zeros_(block.conv2.weight)
    torch.nn.init.zeros_(block.conv2.bias)
    x = torch.ones(1, 8, 4, 4)
    assert torch.equal(block(x), block.nin_shortcut(x))


def _corner_only(conv: torch.nn.Conv2d) -> None:
    """Makes a 3x3 convolution of one channel read its top-left tap."""
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[0, 0, 0, 0] = 1


def test_paddings_of_both_halvings():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    inner, outer = AsymmetricDownsample(1), Downsample(1)
    _corner_only(inner.conv)
    _corner_only(outer.op)
    assert inner(x).flatten().tolist() == [0, 2, 8, 10]  # no padding at the left and top
    assert outer(x).flatten().tolist() == [0, 0, 0, 5]  # one pixel of padding there


def test_upsampling_repeats_pixels():
    up = Upsample(1)
    _corner_only(up.conv)
    with torch.no_grad():
        up.conv.weight.copy_(up.conv.weight.roll((1, 1), (2, 3)))  # the centre tap
    assert up(torch.tensor([[[[1.0, 2.0]]]])).flatten().tolist() == [1, 1, 2, 2, 1, 1, 2, 2]

"""What stage two rests on: the codec makes latents of the training data that have mean 0 and variance 1."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from latentdiff.diffusion.noise import keyed_generator
from latentdiff.metrics.latents import ChannelMoments
from latentdiff.models.autoencoder.autoencoder import Autoencoder
from latentdiff.models.autoencoder.bottlenecks.base import DiagonalGaussian
from latentdiff.models.autoencoder.bottlenecks.fsq import FSQ
from latentdiff.models.autoencoder.bottlenecks.kl import KL
from latentdiff.models.autoencoder.bottlenecks.vq import VQ
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.training.autoencoder_module import AutoencoderModule
from latentdiff.types import Batch

BOTTLENECKS = {"kl": lambda: KL(), "vq": lambda: VQ(entries=16, channels=3), "fsq": lambda: FSQ(levels=[5, 4, 3])}


def autoencoder(kind):
    """Of latents whose channels have means and spreads of their own."""
    torch.manual_seed(0)
    made = Autoencoder(
        bottleneck=BOTTLENECKS[kind](),
        channels=4,
        channel_multipliers=(1,),
        num_res_blocks=1,
        latent_channels=3,
        patch=2,
        mid_attention=False,
        norm_groups=2,
    ).eval()
    with torch.no_grad():
        made.quant_conv.bias[:3] = torch.tensor([0.5, -1.0, 0.2])
        made.quant_conv.weight[:3] *= torch.tensor([3.0, 0.3, 1.0]).view(-1, 1, 1, 1)
    return made


def images(n):
    return torch.randint(0, 256, (n, 3, 8, 8), generator=keyed_generator(7), dtype=torch.uint8)


def batches(x, size=5):
    return [Batch(keys=["k"] * len(part), image=part) for part in x.split(size)]


def measured(kind, parts):
    """Mean and std by the module's own method, which needs no more of the module than this."""
    made = autoencoder(kind)
    module = SimpleNamespace(
        autoencoder=made,
        ema=SimpleNamespace(model=made),
        device=torch.device("cpu"),
        latent_mean=torch.zeros(3),
        latent_std=torch.zeros(3),
        statistics_images=sum(len(part) for part in parts),
        trainer=SimpleNamespace(datamodule=SimpleNamespace(statistics_batches=lambda count: iter(parts))),
    )
    AutoencoderModule.measure_latents(module)
    return made, module.latent_mean, module.latent_std


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_codec_whitens_the_training_data(kind):
    x = images(32)
    made, mean, std = measured(kind, batches(x))
    codec = LatentCodec(autoencoder=made, mean=mean, std=std)
    moments = codec.moments(x.float() / 127.5 - 1.0)
    assert (float(moments[1].max()) == 0.0) == (kind != "kl")
    noise = torch.randn((64, *moments[0].shape), generator=keyed_generator(1))
    draws = torch.stack([codec.draw(moments, one) for one in noise]) if kind == "kl" else codec.draw(moments, noise[0])
    whitened = draws.movedim(-3, 0).flatten(1).double()
    off = 0.02 if kind == "kl" else 1e-3  # the draws' own error, or rounding
    torch.testing.assert_close(whitened.mean(1), torch.zeros(3).double(), atol=off, rtol=0)
    torch.testing.assert_close(whitened.std(1), torch.ones(3).double(), atol=off, rtol=0)
    assert mean.abs().max() > 0.1, "nothing to whiten"
    assert (std - 1.0).abs().max() > 0.1, "nothing to whiten"


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_batches_do_not_matter(kind):
    for one, other in zip(measured(kind, batches(images(12)))[1:], measured(kind, batches(images(12), 12))[1:]):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def _rank(rank, folder):
    """Forked, so that nothing is imported again; one thread, since a fork has no others to wait for."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    x = images(13)
    torch.save(measured("kl", batches(x[:9] if rank == 0 else x[9:], 3))[1:], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_measure_as_one(tmp_path):
    start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for ours, theirs, alone in zip(first, second, measured("kl", batches(images(13)))[1:]):
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, alone, rtol=1e-5, atol=1e-6)


def test_a_channel_that_never_changes_is_no_division_by_zero():
    moments = ChannelMoments(1)
    moments.update(DiagonalGaussian(torch.full((4, 1, 2, 2), 0.25)))
    mean, std, own = moments.compute()
    assert (mean.item(), own.item()) == (0.25, 0.0)
    assert std.item() > 0

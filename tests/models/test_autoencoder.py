import json

import pytest
import torch
from safetensors.torch import save_file
from torch.distributions import Normal, kl_divergence

from latentdiff.config.errors import InputError
from latentdiff.models.autoencoder.autoencoder import Autoencoder
from latentdiff.models.autoencoder.bottleneck import KL, DiagonalGaussian
from latentdiff.models.autoencoder.codec import LatentCodec


def small(**changes):
    torch.manual_seed(0)
    options = {
        "channels": 8,
        "channel_multipliers": (1, 2),
        "num_res_blocks": 1,
        "latent_channels": 3,
        "norm_groups": 4,
    }
    return Autoencoder(bottleneck=KL(), **(options | changes))


def test_parameter_count_of_stable_diffusion():
    with torch.device("meta"):
        model = Autoencoder(
            bottleneck=KL(), channels=128, channel_multipliers=(1, 2, 4, 4), num_res_blocks=2, latent_channels=4
        )
    assert sum(p.numel() for p in model.parameters()) == 83_653_863
    assert model.factor == 8
    assert model.last_layer.shape == (3, 128, 3, 3)


@pytest.mark.parametrize(
    ("changes", "factor", "latent"),
    [
        ({}, 2, 3),
        ({"patch": 2}, 4, 3),
        ({"patch": 4, "channel_multipliers": (1,)}, 4, 3),
        ({"embed_dim": 5, "channel_multipliers": (1, 2, 2)}, 4, 5),
        ({"attention_factors": (1, 2), "in_channels": 1}, 2, 3),
        ({"mid_attention": False}, 2, 3),
    ],
)
def test_factor_shapes_and_gradients(draw, randomise, changes, factor, latent):
    model = randomise(small(**changes))
    image = draw(2, model.in_channels, 16, 24)
    reconstruction, posterior = model(image, draw(2, latent, 16 // factor, 24 // factor))
    assert (model.factor, model.latent_channels) == (factor, latent)
    assert posterior.mean.shape == (2, latent, 16 // factor, 24 // factor)
    assert reconstruction.shape == image.shape
    (reconstruction.square().mean() + model.bottleneck.kl(posterior).mean()).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


@pytest.mark.parametrize("shape", [(1, 3, 15, 16), (1, 1, 16, 16), (3, 16, 16)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(InputError, match=r"multiples of 2, got 15x16|shape \(B, 3, H, W\)"):
        small().encode(torch.zeros(shape))


def test_byte_images_are_refused():
    with pytest.raises(InputError, match=r"float images .* got torch\.uint8"):
        small().encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_attention_at_an_unknown_level_is_refused():
    with pytest.raises(InputError, match=r"\[8\] name no level"):
        small(attention_factors=(8,))


def test_kl_is_that_of_torch_distributions(draw):
    posterior = KL()(draw(2, 6, 4, 4))
    expected = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(KL().kl(posterior), expected)


def test_log_variance_is_clamped_and_float32():
    posterior = KL()(torch.tensor([1.0, 1e4]).view(1, 2, 1, 1).bfloat16())
    assert posterior.logvar.item() == 20
    assert KL()(torch.tensor([1.0, -1e4]).view(1, 2, 1, 1)).logvar.item() == -30
    assert posterior.mean.dtype == torch.float32


def test_posterior_sample_is_mean_plus_std_times_noise():
    posterior = DiagonalGaussian(torch.tensor([2.0]), torch.tensor([4.0]).log())
    assert posterior.sample(torch.tensor([-3.0])).item() == pytest.approx(-4.0)


def test_bfloat16_autocast_stays_near_float32(draw):
    model = small().eval()
    image, noise = draw(2, 3, 16, 16), torch.zeros(2, 3, 8, 8)
    with torch.no_grad():
        exact, _ = model(image, noise)
        with torch.autocast("cpu", torch.bfloat16):
            rough, posterior = model(image, noise)
    assert posterior.mean.dtype == torch.float32
    assert (exact - rough).norm() < 0.03 * exact.norm()


def test_parity_with_diffusers(draw, randomise, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = randomise(small(channels=32, norm_groups=32, channel_multipliers=(1, 2, 2), num_res_blocks=2)).eval()
    save_file({f"first_stage_model.{k}": v for k, v in model.state_dict().items()}, tmp_path / "m.safetensors")
    peer = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        latent_channels=3,
    )
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text(json.dumps(dict(peer.config) | {"_class_name": "AutoencoderKL"}))
    peer = diffusers.AutoencoderKL.from_single_file(
        str(tmp_path / "m.safetensors"), config=str(tmp_path), subfolder="vae", local_files_only=True
    ).eval()
    image = draw(1, 3, 32, 32)
    with torch.no_grad():
        posterior, theirs = model.encode(image), peer.encode(image).latent_dist
        torch.testing.assert_close(posterior.mean, theirs.mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(posterior.logvar, theirs.logvar, atol=1e-5, rtol=1e-5)
        z = draw(1, 3, 8, 8)
        torch.testing.assert_close(model.decode(z), peer.decode(z).sample, atol=1e-5, rtol=1e-5)


def test_codec_whitens_draws_of_its_moments(draw):
    model = small()
    codec = LatentCodec(autoencoder=model, mean=[0.0] * 3, std=[1.0] * 3)
    moments = codec.moments(draw(64, 3, 16, 16).clamp(-1, 1))
    noise = draw(64, 3, 8, 8, seed=1)
    raw = codec.draw(moments, noise)
    codec = LatentCodec(autoencoder=model, mean=raw.mean((0, 2, 3)), std=raw.std((0, 2, 3)))
    z = codec.draw(moments, noise)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(codec.unwhiten(z), raw)


def test_codec_round_trip_is_the_autoencoder(draw):
    model = small(patch=2)
    codec = LatentCodec(autoencoder=model, mean=[0.1, 0.2, -0.3], std=torch.tensor([2.0, 0.5, 1.0]))
    image = draw(2, 3, 16, 16)
    z = codec.encode(image)
    assert (codec.channels, codec.factor) == (3, 4)
    torch.testing.assert_close(z, (model.encode(image).mean - codec.mean) / codec.std)
    torch.testing.assert_close(codec.decode(z), model.decode(model.encode(image).mean).clamp(-1, 1))
    assert codec.decode(1000 * z).abs().max() <= 1


def test_codec_is_frozen_and_not_in_checkpoints():
    parent = torch.nn.ModuleDict({"codec": LatentCodec(autoencoder=small(), mean=[0.0] * 3, std=[1.0] * 3)}).train()
    assert not parent.state_dict()
    assert not any(p.requires_grad for p in parent.parameters())
    assert not any(m.training for m in parent["codec"].modules())
    assert "mean" in parent["codec"].state_dict()


@pytest.mark.parametrize(("mean", "std"), [([0.0], [1.0] * 3), ([0.0] * 3, [1.0, 0.0, 1.0])])
def test_codec_refuses_bad_statistics(mean, std):
    with pytest.raises(InputError, match=r"one value per latent channel|positive"):
        LatentCodec(autoencoder=small(), mean=mean, std=std)

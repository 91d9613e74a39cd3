import json

import pytest
import torch
from safetensors.torch import save_file

from latentdiff.config.errors import InputError
from latentdiff.models.autoencoder.autoencoder import Autoencoder
from latentdiff.models.autoencoder.bottlenecks.fsq import FSQ
from latentdiff.models.autoencoder.bottlenecks.kl import KL
from latentdiff.models.autoencoder.bottlenecks.vq import VQ
from latentdiff.models.autoencoder.codec import LatentCodec


def small(**changes):
    torch.manual_seed(0)
    options = {
        "channels": 8,
        "channel_multipliers": (1, 2),
        "num_res_blocks": 1,
        "latent_channels": 3,
        "norm_groups": 4,
        "bottleneck": KL(),
    }
    return Autoencoder(**(options | changes))


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
        ({"mid_attention": False, "in_channels": 4}, 2, 3),
        ({"quant_conv": False, "post_quant_conv": False}, 2, 3),
        ({"bottleneck": VQ(entries=8, channels=3)}, 2, 3),
        ({"bottleneck": VQ(entries=8, channels=3, ema_decay=0.9), "in_channels": 4}, 2, 3),
        ({"bottleneck": FSQ(levels=(5, 5, 5)), "in_channels": 1, "quant_conv": False}, 2, 3),
    ],
)
def test_factor_shapes_and_gradients(draw, randomise, changes, factor, latent):
    model = randomise(small(**changes))
    image = draw(2, model.in_channels, 16, 24)
    assert (model.factor, model.latent_channels) == (factor, latent)
    assert model.latent_shape(16, 24) == (latent, 16 // factor, 24 // factor)
    reconstruction, made = model(image, draw(2, *model.latent_shape(16, 24)))
    assert made.z.shape == made.posterior.mean.shape == (2, *model.latent_shape(16, 24))
    assert (reconstruction.shape, made.penalty.shape) == (image.shape, (2,))
    assert model.decode(model.encode(image).mean).shape == image.shape
    (reconstruction.square().mean() + made.penalty.mean()).backward()
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 5, "quant_conv": False}, "embed_dim 5 must equal latent_channels 3"),
        ({"embed_dim": 5, "post_quant_conv": False}, "embed_dim 5 must equal latent_channels 3"),
        (
            {"bottleneck": VQ(entries=4, channels=4)},
            "VQ bottleneck is made for 4 latent channels, the autoencoder has 3",
        ),
        ({"bottleneck": FSQ(levels=(5, 5))}, "FSQ bottleneck is made for 2 latent channels"),
    ],
)
def test_widths_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        small(**changes)


def test_latents_of_another_width_are_refused(draw):
    with pytest.raises(InputError, match=r"shape \(B, 3, h, w\), got \(1, 4, 8, 8\)"):
        small().decode(draw(1, 4, 8, 8))


def test_bfloat16_autocast_stays_near_float32(draw):
    model = small().eval()
    image, noise = draw(2, 3, 16, 16), torch.zeros(2, 3, 8, 8)
    with torch.no_grad():
        exact, _ = model(image, noise)
        with torch.autocast("cpu", torch.bfloat16):
            rough, latent = model(image, noise)
    assert latent.posterior.mean.dtype == latent.penalty.dtype == torch.float32
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


@pytest.mark.parametrize("bottleneck", [VQ(entries=8, channels=3), FSQ(levels=(5, 4, 3))])
def test_codec_takes_latents_before_the_quantiser_and_quantises_in_decode(draw, bottleneck):
    model = small(bottleneck=bottleneck)
    if isinstance(bottleneck, VQ):
        torch.nn.init.normal_(bottleneck.embedding.weight)
    image = draw(16, 3, 16, 16)
    raw = model.encode(image).mean
    codec = LatentCodec(autoencoder=model, mean=raw.mean((0, 2, 3)), std=raw.std((0, 2, 3)))
    mean, std = codec.moments(image)
    assert mean.equal(raw)
    assert not std.any()
    z = codec.draw((mean, std), draw(*mean.shape, seed=1))
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)
    quantised = bottleneck.lookup(bottleneck.indices(codec.unwhiten(z)))
    assert not torch.allclose(quantised, raw, atol=0.01)
    expected = model.decoder(model.post_quant_conv(quantised)).clamp(-1, 1)
    torch.testing.assert_close(codec.decode(z), expected)
    torch.testing.assert_close(model(image, torch.zeros_like(raw))[0].clamp(-1, 1), expected)


def test_one_scale_and_shift_serves_all_channels(draw):
    codec = LatentCodec(autoencoder=small(), mean=0.1, std=1 / 0.18215)
    z = draw(1, 3, 2, 2)
    torch.testing.assert_close(codec.whiten(z), (z - 0.1) * 0.18215)
    torch.testing.assert_close(codec.unwhiten(codec.whiten(z)), z)


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

"""Whitening folded into the autoencoder, against the codec that whitens."""

from __future__ import annotations

import pytest
import torch

from latentdiff.checkpoint.foreign import diffusers
from latentdiff.checkpoint.foreign.folding import folded
from latentdiff.checkpoint.foreign.statistics import Statistics, statistics_of
from latentdiff.models.autoencoder.codec import LatentCodec

MEAN, STD = (3.7, -0.6, 1.0), (3.0, 0.2, 1.8)


@pytest.fixture(params=[(True, True), (False, True), (True, False), (False, False)], ids=str)
def codec(request, ours) -> LatentCodec:
    """With and without the two convolutions around the bottleneck."""
    quant, post_quant = request.param
    return LatentCodec(autoencoder=ours(quant_conv=quant, post_quant_conv=post_quant), mean=MEAN, std=STD)


@pytest.mark.parametrize("scale", [1.0, 0.18215])
def test_the_latents_are_the_whitened_ones(codec, draw, scale: float) -> None:
    """At the borders too, where the decoder's first convolution pads."""
    image, z = draw(2, 3, 16, 16).clamp(-1, 1).double(), draw(2, 3, 4, 4, seed=1).double()
    noise = draw(2, 3, 4, 4, seed=2).double()
    made, codec = folded(codec, scale=scale).double(), codec.double()
    assert statistics_of(made).is_near(Statistics((0.0,) * 3, (1 / scale,) * 3))
    posterior = made.autoencoder.encode(image)
    exact = {"rtol": 0, "atol": 1e-5}  # the folded weights are float32
    torch.testing.assert_close(posterior.sample(noise) * scale, codec.draw(codec.moments(image), noise), **exact)
    torch.testing.assert_close(made.autoencoder.decode(z / scale), codec.autoencoder.decode(codec.unwhiten(z)), **exact)


def test_diffusers_gives_whitened_latents_with_a_scale_of_one(codec, draw, tmp_path) -> None:
    made = folded(codec)
    assert diffusers.write(made.autoencoder, statistics_of(made), tmp_path / "vae") == []
    peer = pytest.importorskip("diffusers").AutoencoderKL.from_pretrained(tmp_path / "vae", low_cpu_mem_usage=False)
    assert peer.config.scaling_factor == 1.0
    image, z = draw(2, 3, 16, 16).clamp(-1, 1), draw(2, 3, 4, 4, seed=1)
    with torch.no_grad():
        found, decoded = peer.encode(image).latent_dist, peer.decode(z).sample
    mean, std = codec.moments(image)
    torch.testing.assert_close(found.mean, codec.whiten(mean), rtol=0, atol=2e-5)
    torch.testing.assert_close(found.std, std / codec.std, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(decoded, codec.autoencoder.decode(codec.unwhiten(z)), rtol=0, atol=2e-5)


def test_the_original_stays_as_it_was(codec, draw) -> None:
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    folded(codec)
    assert all(torch.equal(value, before[name]) for name, value in codec.state_dict().items())


def test_a_codebook_is_not_whitened(ours) -> None:
    with pytest.raises(ValueError, match="around KL alone, got VQ"):
        folded(LatentCodec(autoencoder=ours(codebook=8), mean=MEAN, std=STD))

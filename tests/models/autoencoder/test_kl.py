import pytest
import torch
from torch.distributions import Normal, kl_divergence

from latentdiff.models.autoencoder.bottlenecks.base import DiagonalGaussian
from latentdiff.models.autoencoder.bottlenecks.kl import KL


def test_the_penalty_is_the_divergence_of_torch_distributions(draw):
    h = draw(2, 6, 4, 5)
    latent = KL()(h, draw(2, 3, 4, 5, seed=1))
    mean, logvar = h[:, :3], h[:, 3:]
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(latent.posterior.kl(), expected)
    torch.testing.assert_close(latent.penalty, expected.sum((1, 2, 3)))
    torch.testing.assert_close(latent.logs["kl"], expected.sum((1, 2, 3)).mean())
    assert (KL.expansion, KL.reduction) == (2, "sum")


def test_the_latent_is_mean_plus_std_times_noise(draw):
    h, noise = draw(2, 6, 4, 5), draw(2, 3, 4, 5, seed=1)
    latent = KL()(h, noise)
    torch.testing.assert_close(latent.z, h[:, :3] + (0.5 * h[:, 3:]).exp() * noise)
    torch.testing.assert_close(latent.posterior.sample(noise), latent.z)
    assert KL().for_decoder(latent.z) is latent.z
    assert KL().after_batch() == {}


def test_log_variance_is_clamped_and_at_least_float32():
    posterior = KL().posterior(torch.tensor([1.0, 1e4]).view(1, 2, 1, 1).bfloat16())
    assert (posterior.logvar.item(), posterior.mean.dtype) == (20, torch.float32)
    posterior = KL().posterior(torch.tensor([1.0, -1e4], dtype=torch.float64).view(1, 2, 1, 1))
    assert (posterior.logvar.item(), posterior.mean.dtype) == (-30, torch.float64)


def test_a_point_mass_has_no_spread_and_no_divergence(draw):
    point = DiagonalGaussian(draw(1, 2, 3, 3))
    assert point.std.equal(torch.zeros(1, 2, 3, 3))
    assert point.sample(draw(1, 2, 3, 3, seed=1)).equal(point.mean)
    with pytest.raises(ValueError, match="point mass"):
        point.kl()

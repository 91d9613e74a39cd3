from __future__ import annotations

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.path import DiscreteVP, RectifiedFlow, ScaledLinearDDPM

PATHS = [RectifiedFlow(), ScaledLinearDDPM(), ScaledLinearDDPM(steps=10)]


def float64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ddpm_reproduces_the_table_of_diffusers_at_whole_indices(dtype):
    from diffusers import DDPMScheduler

    table = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    t = (torch.arange(1000, dtype=dtype) + 1) / 1000
    alpha, sigma = ScaledLinearDDPM().alpha_sigma(t)
    assert alpha.dtype == dtype
    torch.testing.assert_close(alpha**2, table.to(dtype), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    assert torch.allclose(ScaledLinearDDPM().network_time(t), torch.arange(1000, dtype=dtype), atol=1e-9, rtol=0)


def test_ddpm_interpolates_log_snr_linearly_between_entries():
    path = ScaledLinearDDPM()
    below, middle, above = path.log_snr(float64(0.3, 0.3005, 0.301))
    torch.testing.assert_close(middle, (below + above) / 2)


@pytest.mark.parametrize("path", PATHS)
def test_starts_at_the_data(path):
    alpha, sigma = path.alpha_sigma(float64(0.0))
    assert alpha.item() == 1
    assert sigma.item() == 0
    assert path.log_snr(float64(0.0)).item() == float("inf")
    assert path.network_time(float64(0.0)).item() == 0


def test_ends():
    assert RectifiedFlow().alpha_sigma(torch.ones(1)) == (torch.zeros(1), torch.ones(1))
    assert RectifiedFlow().log_snr(torch.ones(1)).item() == -float("inf")
    assert RectifiedFlow().network_time(torch.ones(1)).item() == 1000
    assert ScaledLinearDDPM().alpha_sigma(torch.ones(1))[0].item() == pytest.approx(0.0682648, abs=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_log_snr_falls_strictly_and_agrees_with_the_coefficients(path):
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)[1:-1]
    log_snr = path.log_snr(t)
    alpha, sigma = path.alpha_sigma(t)
    assert bool((log_snr.diff() < 0).all())
    torch.testing.assert_close(log_snr, torch.log(alpha**2 / sigma**2), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_derivatives_are_those_of_the_coefficients(path):
    t = float64(0.00031, 0.00057, 0.01234, 0.12345, 0.45678, 0.98765)
    h = 1e-7
    ahead, behind = path.alpha_sigma(t + h), path.alpha_sigma(t - h)
    for derivative, after, before in zip(path.derivatives(t), ahead, behind):
        torch.testing.assert_close(derivative, (after - before) / (2 * h), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_derivatives_are_finite_at_both_ends(path):
    assert all(bool(torch.isfinite(d).all()) for d in path.derivatives(torch.tensor([0.0, 1.0])))


@pytest.mark.parametrize("path", PATHS)
def test_mix_is_per_sample_and_upcasts(path, generator):
    x0, noise = (torch.randn(3, 2, 4, 4, generator=generator).bfloat16() for _ in range(2))
    t = torch.tensor([0.0, 0.5, 1.0])
    mixed = path.mix(x0, noise, t)
    assert mixed.dtype == torch.float32
    alpha, sigma = path.alpha_sigma(t)
    for i in range(3):
        torch.testing.assert_close(mixed[i], alpha[i] * x0[i].float() + sigma[i] * noise[i].float())


@pytest.mark.parametrize("betas", [[0.1], [0.0, 0.1], [0.1, 1.0]])
def test_refuses_what_is_no_table(betas):
    with pytest.raises(InputError, match="betas must"):
        DiscreteVP(betas=torch.tensor(betas))


def test_is_built_under_the_meta_device():
    with torch.device("meta"):
        path = ScaledLinearDDPM()
    assert path.alpha_sigma(torch.ones(1, device="cpu"))[0].device.type == "cpu"

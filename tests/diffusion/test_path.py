from __future__ import annotations

import math

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.path import CosineVP, DiscreteVP, KarrasVE, LinearDDPM, RectifiedFlow, ScaledLinearDDPM

TABLES = [
    ScaledLinearDDPM(),
    ScaledLinearDDPM(steps=10),
    ScaledLinearDDPM(zero_terminal_snr=True),
    LinearDDPM(),
    LinearDDPM(zero_terminal_snr=True),
    LinearDDPM(steps=3, zero_terminal_snr=True),
]
PATHS = [RectifiedFlow(), CosineVP(), KarrasVE(), KarrasVE(sigma_min=0.02, sigma_max=5.0, rho=3.0), *TABLES]


def float64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (ScaledLinearDDPM, {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}),
        (LinearDDPM, {}),
    ],
)
def test_ddpm_reproduces_the_table_of_diffusers_at_whole_indices(make, options, zero, dtype):
    from diffusers import DDPMScheduler

    table = DDPMScheduler(**options, rescale_betas_zero_snr=zero).alphas_cumprod
    t = (torch.arange(1000, dtype=dtype) + 1) / 1000
    path = make(zero_terminal_snr=zero)
    alpha, sigma = path.alpha_sigma(t)
    assert alpha.dtype == dtype
    torch.testing.assert_close(alpha**2, table.to(dtype), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    assert torch.allclose(path.network_time(t), torch.arange(1000, dtype=dtype), atol=1e-9, rtol=0)


@pytest.mark.parametrize("make", [ScaledLinearDDPM, LinearDDPM])
def test_zero_terminal_snr_is_algorithm_1_in_double_precision(make):
    from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

    plain = make().alpha_sigma(torch.arange(1, 1001, dtype=torch.float64) / 1000)[0] ** 2
    betas = 1 - plain / torch.cat([float64(1.0), plain[:-1]])
    expected = torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0).sqrt()
    alpha = make(zero_terminal_snr=True).alpha_sigma(torch.arange(1, 1001, dtype=torch.float64) / 1000)[0]
    torch.testing.assert_close(alpha, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", [path for path in TABLES if path.zero_terminal_snr])
def test_zero_terminal_snr_ends_in_pure_noise_and_is_finite_before(path, dtype):
    alpha, sigma = path.alpha_sigma(torch.ones(1, dtype=dtype))
    assert (alpha.item(), sigma.item()) == (0, 1)
    assert path.log_snr(torch.ones(1, dtype=dtype)).item() == -float("inf")
    before = torch.tensor([0.1, 1 - 1.5 / path.steps, 1 - 1 / path.steps, 1 - 0.5 / path.steps], dtype=dtype)
    for values in (*path.alpha_sigma(before), *path.derivatives(before), path.log_snr(before)):
        assert bool(torch.isfinite(values).all())
    torch.testing.assert_close(path.alpha_sigma(before)[0][3], path.alpha_sigma(before)[0][2] / 2)


@pytest.mark.parametrize("path", [CosineVP(), *TABLES])
def test_variance_preserving_paths_preserve_variance(path):
    alpha, sigma = path.alpha_sigma(torch.linspace(0, 1, 1001, dtype=torch.float64))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), atol=1e-12, rtol=0)


def test_cosine_is_that_of_improved_ddpm_without_its_offset():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(CosineVP().alpha_sigma(t)[0] ** 2, torch.cos(t * torch.pi / 2) ** 2)
    torch.testing.assert_close(CosineVP().log_snr(t)[1:-1], -2 * torch.log(torch.tan(torch.pi * t / 2))[1:-1])


@pytest.mark.parametrize("steps", [5, 18, 100])
def test_karras_times_even_down_to_first_are_the_grid_of_edm(steps):
    from diffusers import EDMEulerScheduler

    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    scheduler.set_timesteps(steps)
    t = torch.cat([torch.linspace(1, KarrasVE.FIRST, steps, dtype=torch.float64), float64(0.0)])
    sigma = KarrasVE().alpha_sigma(t)[1]
    torch.testing.assert_close(sigma, scheduler.sigmas.double(), rtol=1e-4, atol=1e-6)
    told = KarrasVE().network_time(t[:-1])
    torch.testing.assert_close(told, scheduler.timesteps.double(), rtol=1e-4, atol=1e-4)


def test_karras_ends():
    path = KarrasVE()
    alpha, sigma = path.alpha_sigma(float64(0.0, KarrasVE.FIRST, 1.0))
    assert alpha.tolist() == [1, 1, 1]
    assert sigma.tolist() == [0, pytest.approx(0.002), pytest.approx(80)]
    told = path.network_time(float64(0.0, 1.0))
    assert told.tolist() == [pytest.approx(math.log(0.002) / 4), pytest.approx(math.log(80) / 4)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_time_at_is_the_inverse_of_log_snr(path, dtype, accuracy):
    t = torch.linspace(0, 1, 4001, dtype=dtype)
    torch.testing.assert_close(path.time_at(path.log_snr(t)), t, atol=accuracy, rtol=0)


@pytest.mark.parametrize("path", PATHS)
def test_time_at_stays_in_range_for_any_log_snr(path):
    t = path.time_at(float64(-float("inf"), -1e3, -30.0, 1e3, float("inf")))
    assert bool(((t >= 0) & (t <= 1)).all())
    assert (t[0].item(), t[-1].item()) == (1, 0)


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
    assert math.isfinite(path.network_time(float64(0.0)).item())


def test_ends():
    assert RectifiedFlow().alpha_sigma(torch.ones(1)) == (torch.zeros(1), torch.ones(1))
    assert RectifiedFlow().log_snr(torch.ones(1)).item() == -float("inf")
    for path in (RectifiedFlow(), CosineVP()):
        assert path.network_time(torch.tensor([0.0, 1.0])).tolist() == [0, 1000]
    assert ScaledLinearDDPM().network_time(torch.tensor([0.0, 1.0])).tolist() == [0, 999]
    assert [c.item() for c in CosineVP().alpha_sigma(torch.ones(1))] == [0, 1]
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
    t = float64(0.00031, 0.00057, 0.01234, 0.12345, 0.45678, 0.98765, 0.99912)
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


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearDDPM(beta_start=0.1, beta_end=0.01), "beta_start <= beta_end"),
        (lambda: LinearDDPM(steps=2, zero_terminal_snr=True), "at least 3"),
        (lambda: KarrasVE(sigma_min=0), "sigma_min"),
        (lambda: KarrasVE(sigma_min=1, sigma_max=0.5), "sigma_min < sigma_max"),
        (lambda: KarrasVE(rho=0.5), "rho >= 1"),
    ],
)
def test_refuses_what_is_no_path(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_is_built_under_the_meta_device():
    for make in (lambda: ScaledLinearDDPM(zero_terminal_snr=True), LinearDDPM, CosineVP, KarrasVE):
        with torch.device("meta"):
            path = make()
        assert path.alpha_sigma(torch.ones(1, device="cpu"))[0].device.type == "cpu"

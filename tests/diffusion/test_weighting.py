from __future__ import annotations

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.loss import DiffusionLoss
from latentdiff.diffusion.parameterization import Epsilon, Sample, V, Velocity
from latentdiff.diffusion.parameterization import Karras as KarrasOutput
from latentdiff.diffusion.path import CosineVP, KarrasVE, LinearDDPM, RectifiedFlow, ScaledLinearDDPM
from latentdiff.diffusion.timesteps import Uniform
from latentdiff.diffusion.weighting import P2, Karras, MinSNR, Sigmoid, SoftMinSNR, Unit
from latentdiff.types import Conditioning

T = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
PATHS = [
    RectifiedFlow(),
    CosineVP(),
    KarrasVE(),
    ScaledLinearDDPM(),
    LinearDDPM(),
    ScaledLinearDDPM(zero_terminal_snr=True),
]
PREDICTIONS = [Epsilon(), Sample(), V(), Velocity(), KarrasOutput(), KarrasOutput(sigma_data=0.5)]
PAIRS = [
    pytest.param(path, prediction, id=f"{type(path).__name__}{i}-{type(prediction).__name__}{j}")
    for i, path in enumerate(PATHS)
    for j, prediction in enumerate(PREDICTIONS)
    if isinstance(prediction, KarrasOutput)
    or not (isinstance(path, KarrasVE) or (isinstance(prediction, Velocity) and path.steps is not None))
]


def slope(path, t):
    """-d log-SNR / dt by central differences."""
    h = 1e-6
    return (path.log_snr(t - h) - path.log_snr(t + h)) / (2 * h)


X0_WEIGHTS = [  # of |x0_hat - x0|^2, written down from the papers in SNR
    (MinSNR(gamma=5), lambda snr, path, t: snr.clamp(max=5)),
    (SoftMinSNR(gamma=4), lambda snr, path, t: 1 / (1 / snr + 1 / 4)),
    (P2(), lambda snr, path, t: snr / (1 + snr)),
    (P2(gamma=0.5, k=2.0), lambda snr, path, t: snr / (2 + snr).sqrt()),
    (Karras(), lambda snr, path, t: snr + 1),
    (Karras(sigma_data=0.5), lambda snr, path, t: (1 / snr + 0.25) / (0.25 / snr)),
    (Sigmoid(bias=2), lambda snr, path, t: 0.5 * snr / (1 + snr * torch.e**-2) * slope(path, t)),
]
WEIGHTINGS = [weighting for weighting, _ in X0_WEIGHTS]


@pytest.mark.parametrize(("weighting", "x0_weight"), X0_WEIGHTS)
@pytest.mark.parametrize(("path", "prediction"), PAIRS)
def test_the_loss_of_the_exact_denoiser_of_gaussian_data(path, prediction, weighting, x0_weight, gaussian):
    """The x0 weight times the posterior variance v^2 sigma^2 / (alpha^2 v^2 + sigma^2).

    The error is linear in x0 and noise: four samples, one standard deviation up and down in each, have its mean square.
    """
    x0 = (gaussian.mean + gaussian.std * torch.tensor([1.0, 1, -1, -1], dtype=torch.float64)).view(4, 1, 1, 1)
    noise = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64).view(4, 1, 1, 1)
    denoiser = gaussian.denoiser(path, prediction)
    loss = DiffusionLoss(timesteps=Uniform(), weighting=weighting)
    for time in (0.0123, 0.1234, 0.4567, 0.8765, 0.9876):
        t = torch.full((4,), time, dtype=torch.float64)
        alpha, sigma = path.alpha_sigma(t[0])
        variance = (gaussian.std * sigma) ** 2 / ((alpha * gaussian.std) ** 2 + sigma**2)
        expected = x0_weight((alpha / sigma) ** 2, path, t[0]) * variance
        got = loss(denoiser, x0, noise, t, Conditioning()).mean()
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("path", "prediction"), PAIRS)
def test_the_unweighted_loss_is_the_posterior_variance_over_the_squared_gain(path, prediction, gaussian):
    x0 = (gaussian.mean + gaussian.std * torch.tensor([1.0, 1, -1, -1], dtype=torch.float64)).view(4, 1, 1, 1)
    noise = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64).view(4, 1, 1, 1)
    t = torch.full((4,), 0.4321, dtype=torch.float64)
    loss = DiffusionLoss(timesteps=Uniform(), weighting=Unit())
    got = loss(gaussian.denoiser(path, prediction), x0, noise, t, Conditioning()).mean()
    alpha, sigma = path.alpha_sigma(t[0])
    variance = (gaussian.std * sigma) ** 2 / ((alpha * gaussian.std) ** 2 + sigma**2)
    torch.testing.assert_close(got, variance / prediction.x0_gain(path, t)[0] ** 2)


def test_unit_is_one():
    assert bool((Unit()(ScaledLinearDDPM(), V(), T) == 1).all())


def test_the_closed_forms_of_the_papers():
    path = ScaledLinearDDPM()
    snr = torch.exp(path.log_snr(T))
    capped = snr.clamp(max=5)
    torch.testing.assert_close(MinSNR(gamma=5)(path, Epsilon(), T), capped / snr)
    torch.testing.assert_close(MinSNR(gamma=5)(path, V(), T), capped / (snr + 1))
    torch.testing.assert_close(SoftMinSNR(gamma=5)(path, Epsilon(), T), 5 / (snr + 5))
    torch.testing.assert_close(P2()(path, Epsilon(), T), 1 / (1 + snr))
    torch.testing.assert_close(P2(gamma=0)(path, Epsilon(), T), torch.ones_like(T))
    torch.testing.assert_close(Karras()(path, V(), T), torch.ones_like(T))
    expected = torch.pi / torch.sin(torch.pi * T) * torch.sigmoid(1.5 - CosineVP().log_snr(T))
    torch.testing.assert_close(Sigmoid(bias=1.5)(CosineVP(), Epsilon(), T), expected)


@pytest.mark.parametrize("path", PATHS)
def test_karras_is_one_for_its_own_parameterization(path):
    weight = Karras(sigma_data=0.5)(path, KarrasOutput(sigma_data=0.5), T)
    torch.testing.assert_close(weight, torch.ones_like(T))


def test_min_snr_of_velocity_is_its_x0_weight_times_t_squared():
    snr = ((1 - T) / T) ** 2
    torch.testing.assert_close(MinSNR()(RectifiedFlow(), Velocity(), T), snr.clamp(max=5) * T**2)


@pytest.mark.parametrize(("path", "prediction"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_weight_is_finite_at_both_ends(path, prediction, dtype):
    for weighting in WEIGHTINGS:
        weight = weighting(path, prediction, torch.tensor([0.0, 1.0], dtype=dtype))
        assert weight.dtype == dtype
        assert bool((torch.isfinite(weight) & (weight >= 0)).all()), type(weighting).__name__


@pytest.mark.parametrize("weighting", [MinSNR(), SoftMinSNR(), P2()])
def test_the_noise_weight_is_one_at_pure_noise(weighting):
    assert weighting(RectifiedFlow(), Epsilon(), torch.ones(1)).item() == pytest.approx(1, rel=1e-3)


def test_sigmoid_weighs_a_log_snr_the_same_on_every_path():
    """The integral over t, of 1/2 w(log-SNR) d log-SNR, does not depend on the path between two log-SNRs."""

    def integral(path) -> torch.Tensor:
        start, end = path.time_at(torch.tensor([4.0, -3.0], dtype=torch.float64))
        t = start + (end - start) * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
        return Sigmoid(bias=1.0)(path, Epsilon(), t).mean() * (end - start)

    softplus = torch.nn.functional.softplus
    expected = 0.5 * (softplus(torch.tensor(4.0)) - softplus(torch.tensor(-3.0)))
    for path in PATHS:
        assert integral(path).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MinSNR(gamma=0), "gamma"),
        (lambda: SoftMinSNR(gamma=-1), "gamma"),
        (lambda: P2(gamma=-1), "gamma"),
        (lambda: P2(k=0), "k must"),
        (lambda: Karras(sigma_data=0), "sigma_data"),
    ],
)
def test_refuses_weights_of_no_size(build, message):
    with pytest.raises(InputError, match=message):
        build()

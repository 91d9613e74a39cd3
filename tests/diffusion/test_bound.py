from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from latentdiff.config.errors import InputError
from latentdiff.diffusion import bound
from latentdiff.diffusion.bound import variational_bound
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.parameterization import Epsilon, Karras, Sample, V, Velocity
from latentdiff.diffusion.path import CosineVP, DiscreteVP, KarrasVE, LinearDDPM, RectifiedFlow, ScaledLinearDDPM
from latentdiff.types import Conditioning

PAIRS = [
    (RectifiedFlow(), Velocity()),
    (RectifiedFlow(), Epsilon()),
    (CosineVP(), V()),
    (KarrasVE(), Karras(sigma_data=0.5)),
    (LinearDDPM(steps=50, beta_end=0.3), Epsilon()),
    (ScaledLinearDDPM(steps=200, beta_end=0.06), V()),
    (ScaledLinearDDPM(steps=200, beta_end=0.06, zero_terminal_snr=True), V()),
    (ScaledLinearDDPM(steps=200, beta_end=0.06, zero_terminal_snr=True), Epsilon()),
]
EIGHT = torch.tensor([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], dtype=torch.float64)
"""Signs of (x0, noise, place): what is linear in the first two has the mean square of a Gaussian."""


def averaged(denoiser: Denoiser, gaussian, steps: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prior, diffusion, reconstruction and total, averaged over data and noise exactly, and over 32 places."""
    places = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    draws, shift = EIGHT.repeat(32, 1), torch.special.ndtri(places).repeat_interleave(8)
    x0 = (gaussian.mean + gaussian.std * draws[:, 0]).view(-1, 1, 1, 1)
    count = steps or ((int(denoiser.t_max * denoiser.path.steps + 1e-6) - 1) if denoiser.path.steps else 128)

    def noise_at(i: int) -> Tensor:
        return (shift if i == count + 1 else draws[:, 1]).view(-1, 1, 1, 1)

    got = variational_bound(denoiser, x0, Conditioning(), noise_at=noise_at, steps=steps)
    return got.prior.mean(), got.diffusion.mean(), got.reconstruction.mean(), got.total.mean()


def log_snrs(denoiser: Denoiser) -> Tensor:
    """Levels between which the terms lie: a table's entries, or the two ends."""
    path = denoiser.path
    if path.steps is None:
        low, high = bound.LOG_SNR_RANGE
        end = path.log_snr(torch.tensor(denoiser.t_max, dtype=torch.float64)).item()
        return torch.tensor([high, max(low, end)], dtype=torch.float64)
    entries = int(denoiser.t_max * path.steps + 1e-6)
    return path.log_snr(torch.arange(1, entries + 1, dtype=torch.float64) / path.steps)


@pytest.mark.parametrize(("path", "parameterization"), PAIRS)
def test_gaussian_data_with_the_exact_denoiser_has_its_closed_form(path, parameterization, gaussian):
    """With P = v^2 / (1 + v^2 SNR) the mean square error: every term is elementary."""
    denoiser, v2 = gaussian.denoiser(path, parameterization), gaussian.std**2
    prior, diffusion, reconstruction, total = averaged(denoiser, gaussian)
    snr = log_snrs(denoiser).exp()
    variance = v2 / (1 + v2 * snr)
    if path.steps is None:
        expected = 0.5 * torch.log((1 + v2 * snr[0]) / (1 + v2 * snr[-1]))
    else:
        expected = (0.5 * (snr[:-1] - snr[1:]) * variance[1:]).sum()
    assert diffusion.item() == pytest.approx(expected.item(), rel=1e-4)
    share = 1 / (1 + snr[-1])  # of the noise in x at the noisiest level
    second = gaussian.mean**2 + v2
    assert prior.item() == pytest.approx((0.5 * ((1 - share) * (second - 1) - share.log())).item(), abs=1e-9)
    expected = 0.5 * torch.log(2 * math.pi / snr[0]) + 0.5 * snr[0] * variance[0]
    assert reconstruction.item() == pytest.approx(expected.item(), rel=1e-6)
    likelihood = 0.5 * math.log(2 * math.pi * math.e * v2)
    assert total.item() > likelihood
    if path.steps is None:
        away = prior.item() - 0.5 * math.log1p(v2 * snr[-1].item())
        assert total.item() == pytest.approx(likelihood + away, abs=1e-4)


@pytest.mark.parametrize(("path", "parameterization"), [(RectifiedFlow(), Velocity()), (CosineVP(), V())])
def test_reaches_the_likelihood_where_the_path_ends_in_noise(path, parameterization, gaussian):
    total = averaged(gaussian.denoiser(path, parameterization), gaussian)[3].item()
    assert total == pytest.approx(0.5 * math.log(2 * math.pi * math.e * gaussian.std**2), abs=1e-4)


def even_table(steps: int) -> DiscreteVP:
    """log-SNR evenly from 12 to -12."""
    abar = torch.sigmoid(torch.linspace(12, -12, steps, dtype=torch.float64))
    return DiscreteVP(betas=1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]]))


def test_longer_tables_between_the_same_ends_are_tighter_in_proportion(gaussian):
    """By 1/4 h times the integral of (SNR P)^2 over the log-SNR, to first order in the step h."""
    likelihood, v2 = 0.5 * math.log(2 * math.pi * math.e * gaussian.std**2), gaussian.std**2
    integral = math.log1p(v2 * math.exp(12)) - 1
    for n in (240, 480, 960):
        above = averaged(gaussian.denoiser(even_table(n + 1), V()), gaussian)[3].item() - likelihood
        assert above == pytest.approx(24 / n / 4 * integral, rel=10 / n)


class Odd(nn.Module):
    """A network that is neither linear nor a posterior mean."""

    def forward(self, x, t, cond):
        return torch.tanh(x) + 0.3 * torch.sin(x + t.view(-1, 1, 1, 1) / 5)


def by_hand(x0: Tensor, noises: list[Tensor], betas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """arXiv:2006.11239 eq. 5 to 8 with the Gaussians written out: KLs of means and variances, epsilon prediction."""

    def kl(mean_q: Tensor, var_q: Tensor, mean_p: Tensor, var_p: Tensor) -> Tensor:
        each = 0.5 * (torch.log(var_p / var_q) + (var_q + (mean_q - mean_p) ** 2) / var_p - 1)
        return each.flatten(1).sum(1)

    abar = torch.cumprod(1 - betas, 0)
    zero, one = torch.zeros_like(x0), torch.ones(())
    prior = kl(abar[-1].sqrt() * x0, 1 - abar[-1], zero, one)
    terms = torch.zeros(len(x0), dtype=torch.float64)
    for i, noise in enumerate(noises):
        x = abar[i].sqrt() * x0 + (1 - abar[i]).sqrt() * noise
        epsilon = Odd()(x, torch.full((len(x0),), float(i), dtype=torch.float64), None)
        predicted = (x - (1 - abar[i]).sqrt() * epsilon) / abar[i].sqrt()
        if i == 0:
            law = torch.distributions.Normal(predicted, ((1 - abar[0]) / abar[0]).sqrt())
            reconstruction = -law.log_prob(x0).flatten(1).sum(1)
            continue
        to_x0 = abar[i - 1].sqrt() * betas[i] / (1 - abar[i])
        to_x = (1 - betas[i]).sqrt() * (1 - abar[i - 1]) / (1 - abar[i])
        variance = (1 - abar[i - 1]) / (1 - abar[i]) * betas[i]
        terms += kl(to_x0 * x0 + to_x * x, variance, to_x0 * predicted + to_x * x, variance)
    return prior, terms, reconstruction


def hard_case(generator) -> tuple[Denoiser, Tensor, list[Tensor]]:
    denoiser = Denoiser(backbone=Odd(), path=LinearDDPM(steps=20, beta_end=0.4), parameterization=Epsilon())
    x0, *noises = torch.randn(22, 5, 2, 3, 3, generator=generator, dtype=torch.float64)
    return denoiser, x0, noises


def test_on_a_table_it_is_the_sum_of_ddpm_s_kls(generator):
    denoiser, x0, noises = hard_case(generator)
    got = variational_bound(denoiser, x0, Conditioning(), noise_at=noises.__getitem__)
    betas = torch.linspace(1e-4, 0.4, 20, dtype=torch.float64)
    prior, terms, reconstruction = by_hand(x0, noises[:20], betas)
    torch.testing.assert_close(got.prior, prior, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.diffusion, terms, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.reconstruction, reconstruction, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.total, prior + terms + reconstruction)
    torch.testing.assert_close(got.bits_per_dim, got.total / 18 / math.log(2))


def test_the_noisiest_entry_is_that_of_t_max(generator):
    """Epsilon under zero terminal SNR is cut off at 0.99: of 20 entries 19 are left, none of them with alpha = 0."""
    path = LinearDDPM(steps=20, beta_end=0.4, zero_terminal_snr=True)
    x0 = torch.randn(3, 2, 3, 3, generator=generator, dtype=torch.float64)
    asked = []

    def noise_at(i: int) -> Tensor:
        asked.append(i)
        return torch.zeros_like(x0)

    denoiser = Denoiser(backbone=Odd(), path=path, parameterization=Epsilon())
    got = variational_bound(denoiser, x0, Conditioning(), noise_at=noise_at)
    assert bool(torch.isfinite(got.total).all())
    assert bool((got.prior > 0).all())
    assert sorted(asked) == list(range(20))
    ends_in_noise = Denoiser(backbone=Odd(), path=path, parameterization=V())
    assert variational_bound(ends_in_noise, x0, Conditioning(), noise_at=noise_at).prior.abs().max().item() == 0


@pytest.mark.parametrize("steps", [1, 7])
def test_fewer_levels_of_a_table_estimate_the_same_sum(steps, gaussian):
    """Averaged over the place, with data and noise averaged exactly."""
    denoiser = gaussian.denoiser(ScaledLinearDDPM(steps=33, beta_end=0.3), V())
    whole = averaged(denoiser, gaussian)[1]
    few = averaged(denoiser, gaussian, steps)[1]
    assert few.item() == pytest.approx(whole.item(), rel=1e-9 if steps == 1 else 0.03)


def test_a_sample_s_bound_does_not_depend_on_its_batch(generator):
    denoiser, x0, noises = hard_case(generator)
    whole = variational_bound(denoiser, x0, Conditioning(), noise_at=noises.__getitem__, steps=4)
    alone = variational_bound(denoiser, x0[2:3], Conditioning(), noise_at=lambda i: noises[i][2:3], steps=4)
    torch.testing.assert_close(alone.total, whole.total[2:3])


def test_float32_agrees_with_float64(generator):
    x0 = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
    noise = torch.randn(131, 2, 4, 8, 8, generator=generator, dtype=torch.float64)
    for path, parameterization in PAIRS[:4]:
        denoiser = Denoiser(backbone=Odd(), path=path, parameterization=parameterization)
        double, single = (
            variational_bound(denoiser, x.to(dtype), Conditioning(), noise_at=noise.__getitem__).total
            for x, dtype in ((x0, torch.float64), (x0, torch.float32))
        )
        torch.testing.assert_close(single, double, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("path", "parameterization", "steps"),
    [(LinearDDPM(steps=20), Sample(), 20), (LinearDDPM(steps=20), Sample(), 0), (RectifiedFlow(), Velocity(), 0)],
)
def test_refuses_levels_that_are_not_there(path, parameterization, steps):
    denoiser = Denoiser(backbone=Odd(), path=path, parameterization=parameterization)
    with pytest.raises(InputError, match="expected steps"):
        variational_bound(denoiser, torch.zeros(1, 1, 2, 2), Conditioning(), noise_at=torch.zeros, steps=steps)

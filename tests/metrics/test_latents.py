import json
import math
import subprocess
import sys

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.metrics.codebook import codebook_usage
from latentdiff.metrics.latents import ChannelMoments, LatentDiagnostics
from latentdiff.metrics.rows import gathered
from latentdiff.metrics.spectrum import radial_power
from latentdiff.metrics.spectrum import spectrum as spectrum_of
from latentdiff.models.autoencoder.bottlenecks.base import DiagonalGaussian


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def posteriors(n=12, channels=3, side=8):
    """Channels of different mean, spread and posterior variance; the last follows the first."""
    scale = torch.tensor([2.0, 0.1, 1.0]).view(-1, 1, 1)
    mean = normal(n, channels, side, side) * scale + torch.tensor([1.0, 0.0, -3.0]).view(-1, 1, 1)
    mean[:, 2] = 0.5 * mean[:, 0] - 3.5
    logvar = (0.3 * normal(n, channels, side, side, seed=1)) + torch.tensor([-4.0, 0.0, -2.0]).view(-1, 1, 1)
    return DiagonalGaussian(mean, logvar)


def part(posterior, rows):
    return DiagonalGaussian(posterior.mean[rows], None if posterior.logvar is None else posterior.logvar[rows])


def diagnosed(posterior, *chunks, indices=None, entries=None):
    metric, parts = LatentDiagnostics(codebook_entries=entries), []
    for rows in chunks or (slice(None),):
        columns = metric.measure(part(posterior, rows), None if indices is None else indices[rows])
        parts.append((rows.start or 0, columns))
    return metric.result(gathered(parts))


def per_channel(x):
    return x.transpose(0, 1).flatten(1).double()


def test_statistics_are_those_of_draws():
    posterior = posteriors()
    moments = ChannelMoments(3)
    moments.update(part(posterior, slice(0, 5)))
    moments.update(part(posterior, slice(5, None)))
    mean, std, own = moments.compute()
    draws = torch.cat([per_channel(posterior.sample(normal(12, 3, 8, 8, seed=i))) for i in range(2, 200)], 1)
    torch.testing.assert_close(mean, per_channel(posterior.mean).mean(1), atol=1e-9, rtol=0)
    torch.testing.assert_close(std, draws.std(1), rtol=5e-3, atol=0)
    torch.testing.assert_close(own, per_channel(posterior.std).square().mean(1).sqrt(), rtol=1e-9, atol=0)
    with pytest.raises(ValueError, match="no latent"):
        ChannelMoments(3).compute()


def test_price_is_torch_distributions_divergence():
    posterior = posteriors()
    found = diagnosed(posterior, slice(0, 7), slice(7, None))
    q = torch.distributions.Normal(posterior.mean.double(), posterior.std.double())
    p = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    nats = torch.distributions.kl_divergence(q, p).sum((2, 3)).mean(0)
    assert found["channels"]["kl_nats"] == pytest.approx(nats.tolist(), rel=1e-5)
    assert found["kl_nats_per_image"] == pytest.approx(nats.sum().item(), rel=1e-5)
    assert found["images"] == 12
    free = diagnosed(DiagonalGaussian(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)))
    assert free["kl_nats_per_image"] == 0.0


def test_correlation_is_torch_corrcoef():
    posterior = posteriors()
    found = diagnosed(posterior)
    expected = torch.corrcoef(per_channel(posterior.mean))
    torch.testing.assert_close(torch.tensor(found["correlation"]).double(), expected, atol=1e-6, rtol=0)
    assert found["largest_correlation"] == pytest.approx(1.0, abs=1e-6)  # channel 2 follows channel 0


def test_how_the_set_is_split_changes_nothing():
    posterior, codes = posteriors(), torch.arange(12 * 64).view(12, 8, 8) % 50
    whole = diagnosed(posterior, indices=codes, entries=64)
    split = diagnosed(posterior, slice(4, None), slice(0, 1), slice(1, 4), indices=codes, entries=64)
    assert split["codebook"] == whole["codebook"]
    for key in ("correlation", "kl_nats_per_image", "smallest_std"):
        torch.testing.assert_close(torch.tensor(split[key]), torch.tensor(whole[key]), rtol=1e-9, atol=1e-12)


def test_quantised_and_constant_latents_have_no_price_and_no_spectrum():
    found = diagnosed(DiagonalGaussian(torch.full((4, 2, 8, 8), 0.3)), indices=torch.zeros(4, 8, 8).long(), entries=8)
    assert "kl_nats_per_image" not in found
    assert "spectrum" not in found
    assert found["codebook"] == {"entries": 8, "usage": 1 / 8, "perplexity": 1.0, "bits": 0.0}
    assert found["largest_correlation"] == pytest.approx(0.0, abs=1e-3)
    assert json.loads(json.dumps(found)) == found


def test_use_of_a_codebook_in_closed_form():
    assert codebook_usage([torch.arange(8).repeat(3, 1)], 16) == {
        "entries": 16,
        "usage": 0.5,
        "perplexity": pytest.approx(8.0),
        "bits": pytest.approx(3.0),
    }
    uneven = [torch.full((times, 1, 1), index) for index, times in ((0, 3), (1, 1))]
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert codebook_usage(uneven, 2)["perplexity"] == pytest.approx(math.exp(entropy))
    with pytest.raises(InputError, match="out of range"):
        diagnosed(posteriors(1), indices=torch.tensor([[2]]), entries=2)
    with pytest.raises(ValueError, match="no codebook index"):
        codebook_usage([], 2)


def spectrum(latents):
    return spectrum_of(radial_power(latents).sum(0), latents.shape[-2:])


def test_white_noise_is_flat_at_any_strength():
    found = spectrum(normal(64, 3, 32, 32) * torch.tensor([0.01, 1.0, 30.0]).view(-1, 1, 1) + 5.0)
    assert [found[band] for band in ("low", "middle", "high")] == pytest.approx([1.0, 1.0, 1.0], abs=0.05)
    assert found["slope"] == pytest.approx(0.0, abs=0.03)
    assert found["frequency"] == pytest.approx([k / 32 for k in range(1, 17)])
    assert found["power"] == pytest.approx([1.0] * 16, abs=0.15)


@pytest.mark.parametrize("exponent", [-2.0, -1.0, 1.0])
def test_slope_of_a_power_law(exponent):
    side = 64
    f = torch.fft.fftfreq(side, dtype=torch.float64)
    ring = (torch.sqrt(f[:, None] ** 2 + f[None] ** 2) * side).round()
    amplitude = ring.clamp_min(1.0) ** (exponent / 2)
    shaped = torch.fft.ifft2(torch.fft.fft2(normal(64, 1, side, side).double()) * amplitude).real
    found = spectrum(shaped)
    assert found["slope"] == pytest.approx(exponent, abs=0.05)
    assert (found["low"] > found["high"]) == (exponent < 0)


def test_a_wave_stands_at_its_frequency():
    side, cycles = 16, 3
    wave = torch.sin(2 * torch.pi * cycles * torch.arange(side) / side).expand(1, 1, side, side)
    power = spectrum(wave)["power"]
    assert power.index(max(power)) == cycles - 1
    assert sum(power) - max(power) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("shape", [(4, 1, 1, 1), (4, 1, 2, 2), (4, 1, 4, 6)])
def test_tiny_latents_have_what_can_be_had(shape):
    found = spectrum(normal(*shape))
    assert all(math.isfinite(value) for value in found.values() if isinstance(value, float))
    assert ("slope" in found) == (min(shape[2:]) >= 4)


WORKER = """
import json, sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from test_latents import *
rank = int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/store", rank=rank, world_size=2)
posterior, codes = posteriors(), torch.arange(12 * 64).view(12, 8, 8) % 50
rows = slice(0, 5) if rank == 0 else slice(5, None)
result = diagnosed(posterior, rows, indices=codes, entries=64)
open(f"{sys.argv[2]}/{rank}.json", "w").write(json.dumps(result))
dist.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path, request):
    command = [sys.executable, "-c", WORKER, str(request.path.parent), str(tmp_path)]
    workers = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    codes = torch.arange(12 * 64).view(12, 8, 8) % 50
    one = diagnosed(posteriors(), indices=codes, entries=64)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["channels"] == {k: pytest.approx(v, rel=1e-12) for k, v in one["channels"].items()}
    assert first["codebook"] == one["codebook"]
    assert first["spectrum"]["slope"] == pytest.approx(one["spectrum"]["slope"], rel=1e-9)
    assert first["images"] == 12

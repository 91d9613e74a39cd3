import pytest
import torch
from torch import nn

from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.parameterization import Epsilon, Sample, V, Velocity
from latentdiff.diffusion.path import CosineVP, RectifiedFlow, ScaledLinearDDPM
from latentdiff.training.loss_by_time import FixedLevelLoss, LossByTime, noise_share, quarters
from latentdiff.types import Conditioning


def test_quarters():
    t = torch.tensor([0.0, 0.2499, 0.25, 0.5, 0.75, 0.999, 1.0])
    assert quarters(t).tolist() == [0, 0, 1, 2, 3, 3, 3]


def test_running_means_and_their_state():
    loss = LossByTime(memory=4)
    assert loss.update([2.0, 0.0, 3.0, 0.0], [1, 0, 2, 0]) == {"t0": 2.0, "t2": 1.5}
    found = loss.update([0.0, 5.0, 1.0, 0.0], [0, 1, 2, 0])
    assert found == pytest.approx({"t0": 2.0, "t1": 5.0, "t2": (0.75 * 3 + 1) / (0.75 * 2 + 2)})
    parent, other = nn.ModuleDict({"loss": loss}), nn.ModuleDict({"loss": LossByTime(memory=4)})
    other.load_state_dict(parent.state_dict(), strict=True)
    assert other["loss"].update([1.0] * 4, [1] * 4) == loss.update([1.0] * 4, [1] * 4)


def test_a_checkpoint_from_before_starts_them_anew():
    parent = nn.ModuleDict({"loss": LossByTime()})
    parent["loss"].update([1.0] * 4, [1] * 4)
    parent.load_state_dict({}, strict=True)
    assert parent["loss"].counts == [0.0] * 4


class Exact(nn.Module):
    """The output of the exact denoiser of N(0, 1) data, where E[x0 | x_t] = alpha x_t / (alpha^2 + sigma^2)."""

    def __init__(self, path, parameterization):
        super().__init__()
        self.path, self.parameterization, self.asked = path, parameterization, []

    def forward(self, x, t, cond):
        known = torch.linspace(0.001, 0.999, 4001, dtype=torch.float64)
        if self.path.steps:
            known = torch.arange(1, self.path.steps + 1, dtype=torch.float64) / self.path.steps
        at = known[(self.path.network_time(known)[None] - t[:, None]).abs().argmin(1)].to(x)
        self.asked.append(at)
        alpha, sigma = (c.view(-1, 1, 1, 1) for c in self.path.alpha_sigma(at))
        x0 = alpha * x / (alpha**2 + sigma**2)
        noise = sigma * x / (alpha**2 + sigma**2)
        return self.parameterization.target(x0, noise, self.path, at)


PAIRS = [
    (RectifiedFlow(), Velocity()),
    (RectifiedFlow(), Epsilon()),
    (CosineVP(), V()),
    (ScaledLinearDDPM(), Epsilon()),
    (ScaledLinearDDPM(), Sample()),
]


def measured(path, parameterization, images: int = 256, batch: int = 64):
    loss = FixedLevelLoss()
    loss.start()
    denoiser = Denoiser(backbone=Exact(path, parameterization), path=path, parameterization=parameterization)
    x0 = torch.randn(images, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for start in range(0, images, batch):
        numbers = list(range(start, min(start + batch, images)))
        loss.add(denoiser, x0[numbers], Conditioning(), numbers)
    return loss.finish()


@pytest.mark.parametrize(("path", "parameterization"), PAIRS)
def test_one_denoiser_has_one_loss_on_every_path(path, parameterization):
    """The exact denoiser of N(0, 1) data has the error 1 in v at every noise level."""
    found = measured(path, parameterization)
    assert found.keys() == {"loss_v", "loss_v_t0", "loss_v_t1", "loss_v_t2", "loss_v_t3"}
    for value in found.values():
        assert value == pytest.approx(1.0, abs=0.05)  # Monte Carlo: 45 images of 128 numbers in the smallest quarter
    reference = measured(*PAIRS[0])
    assert found == pytest.approx(reference, rel=5e-3)  # the same noise: far nearer than the Monte Carlo error


def test_levels_fill_the_range_and_depend_on_the_number_alone():
    share = noise_share(list(range(1000, 1200)))
    assert torch.equal(share[7:9], noise_share([1007, 1008]))
    assert FixedLevelLoss.LOW <= share.min() < 0.06
    assert 0.89 < share.max() <= FixedLevelLoss.HIGH
    assert share.sort().values.diff().max() < 0.01


def test_it_is_the_same_however_the_images_are_batched():
    assert measured(*PAIRS[0], images=100, batch=7) == pytest.approx(measured(*PAIRS[0], images=100, batch=100))


def test_a_table_is_asked_at_its_entries():
    path = ScaledLinearDDPM()
    denoiser = Denoiser(backbone=(network := Exact(path, V())), path=path, parameterization=V())
    times = []
    denoiser.backbone.register_forward_pre_hook(lambda module, args: times.append(args[1]))
    FixedLevelLoss().add(denoiser, torch.randn(50, 1, 2, 2), Conditioning(), list(range(50)))
    assert torch.equal(times[0], times[0].round())
    assert len(network.asked) == 1

import math

import pytest
import torch
from torch import nn

from latentdiff.losses.reconstruction import ReconstructionLoss


class Constant(nn.Module):
    """A distance of 0.25 for every sample, 0.75 for the second."""

    def forward(self, a, b):
        return torch.tensor([0.25, 0.75])[: len(a)]


def pair():
    """|x - r| is 0.5 everywhere in the first sample and 0.2 in the second; 12 elements each."""
    image = torch.zeros(2, 3, 2, 2)
    return image + torch.tensor([0.5, -0.2]).view(2, 1, 1, 1), image


def test_sum_over_elements_per_sample():
    torch.testing.assert_close(ReconstructionLoss(perceptual=None)(*pair()), torch.tensor([6.0, 2.4]))
    both = ReconstructionLoss(perceptual=None, l1=2.0, l2=3.0)
    torch.testing.assert_close(both(*pair()), 12 * torch.tensor([2 * 0.5 + 3 * 0.25, 2 * 0.2 + 3 * 0.04]))


def test_perceptual_distance_counts_for_every_element():
    loss = ReconstructionLoss(perceptual=Constant(), perceptual_weight=0.5)
    torch.testing.assert_close(loss(*pair()), 12 * torch.tensor([0.5 + 0.5 * 0.25, 0.2 + 0.5 * 0.75]))


def test_log_scale():
    """sum(e / exp(s) + s), least at s = log(mean e)."""
    loss = ReconstructionLoss(perceptual=None, learn_logvar=True)
    with torch.no_grad():
        loss.logvar.fill_(0.7)
    expected = 12 * (torch.tensor([0.5, 0.2]) / math.exp(0.7) + 0.7)
    torch.testing.assert_close(loss(*pair()), expected)
    with torch.no_grad():
        loss.logvar.fill_(math.log(0.35))
    (gradient,) = torch.autograd.grad(loss(*pair()).mean(), loss.logvar)
    assert gradient.item() == pytest.approx(0.0, abs=1e-5)


def test_log_scale_learns_only_if_asked():
    assert not ReconstructionLoss(perceptual=None).logvar.requires_grad
    assert ReconstructionLoss(perceptual=None, learn_logvar=True).logvar.requires_grad


def test_float32_under_autocast():
    r, x = pair()
    with torch.autocast("cpu", torch.bfloat16):
        value = ReconstructionLoss(perceptual=None)(r.bfloat16(), x)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, 12 * torch.tensor([0.5, float(torch.tensor(0.2).bfloat16())]))


def test_log_scale_trained_by_gradient_reaches_its_closed_form_optimum():
    """argmin over s of e / exp(s) + s is log e, with e the mean over all elements: log(mean of 0.5 and 0.2)."""
    loss = ReconstructionLoss(perceptual=None, learn_logvar=True)
    optimizer = torch.optim.SGD([loss.logvar], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss(*pair()).mean().backward()
        optimizer.step()
    assert loss.logvar.item() == pytest.approx(math.log(0.35), rel=1e-5)


def test_terms_are_named_and_the_distance_is_bare():
    loss = ReconstructionLoss(perceptual=Constant(), perceptual_weight=0.5)
    terms = loss.terms(*pair())
    torch.testing.assert_close(terms["perceptual"], torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(terms["nll"], loss(*pair()))
    assert set(ReconstructionLoss(perceptual=None).terms(*pair())) == {"nll"}


def test_float64_stays_float64():
    r, x = (t.double() for t in pair())
    assert ReconstructionLoss(perceptual=None).double()(r, x).dtype is torch.float64


def test_perceptual_network_runs_under_autocast_and_the_sums_do_not():
    class Spy(nn.Module):
        def forward(self, a, b):
            self.seen = torch.is_autocast_enabled("cpu")
            return (a - b).abs().mean((1, 2, 3)).bfloat16()

    spy = Spy()
    with torch.autocast("cpu", torch.bfloat16):
        value = ReconstructionLoss(perceptual=spy)(*pair())
    assert spy.seen
    assert value.dtype is torch.float32

import math

import pytest
import torch

from latentdiff.losses.adversarial import (
    AdversarialSchedule,
    Hinge,
    NonSaturating,
    Vanilla,
    accuracy,
    adaptive_weight,
)


def test_hinge_losses_in_closed_form():
    """max(0, 1 - D(x)) = 0, 0.5, 3 and max(0, 1 + D(r)) = 3, 0, 1; the second sample has two patches."""
    real, fake = torch.tensor([[2.0, 2.0], [0.5, -2.0]]), torch.tensor([[2.0, 2.0], [-3.0, 0.0]])
    torch.testing.assert_close(Hinge().discriminator(real, fake), torch.tensor([1.5, 0.5 * (1.75 + 0.5)]))
    torch.testing.assert_close(Hinge().generator(fake), torch.tensor([-2.0, 1.5]))


def test_cross_entropies_in_closed_form():
    """sigmoid(log 3) = 3/4."""
    real, fake = torch.tensor([math.log(3.0)]), torch.tensor([-math.log(3.0)])
    for loss in (NonSaturating(), Vanilla()):
        assert loss.discriminator(real, fake).item() == pytest.approx(math.log(4 / 3))
        assert loss.discriminator(fake, real).item() == pytest.approx(math.log(4))
    assert NonSaturating().generator(fake).item() == pytest.approx(math.log(4))
    assert Vanilla().generator(fake).item() == pytest.approx(math.log(3))


def test_non_saturating_agrees_with_torch():
    real, fake = torch.randn(2, 5, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    assert NonSaturating().generator(fake).mean().item() == pytest.approx(bce(fake, ones).item())
    expected = 0.5 * (bce(real, ones) + bce(fake, zeros))
    assert NonSaturating().discriminator(real, fake).mean().item() == pytest.approx(expected.item())


def test_discriminator_that_is_sure_has_no_gradient():
    real, fake = torch.full((2, 1, 3, 3), 1.5, requires_grad=True), torch.full((2, 1, 3, 3), -1.5, requires_grad=True)
    loss = Hinge().discriminator(real, fake).sum()
    loss.backward()
    assert loss == 0
    assert real.grad.abs().max() == fake.grad.abs().max() == 0


@pytest.mark.parametrize("loss", [Hinge(), NonSaturating(), Vanilla()])
def test_losses_are_float32_or_wider(loss):
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        logits = torch.tensor([0.1, 0.2], dtype=dtype)
        assert loss.generator(logits).dtype is loss.discriminator(logits, logits).dtype is wide


def test_accuracy_counts_a_tie_half():
    real, fake = torch.tensor([[1.0, -1.0], [0.0, 0.0]]), torch.tensor([[-1.0, -1.0], [0.0, 0.0]])
    torch.testing.assert_close(accuracy(real, fake), torch.tensor([0.75, 0.5]))


def test_adaptive_weight_is_the_ratio_of_the_norms():
    nll, gan = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.3, 0.0], [0.0, -0.4]])
    assert adaptive_weight(nll, gan).item() == pytest.approx(5 / (0.5 + 1e-4))
    assert adaptive_weight(nll.bfloat16(), gan.bfloat16()).dtype is torch.float32
    assert adaptive_weight(nll.double(), gan.double()).dtype is torch.float64


def test_adaptive_weight_is_bounded():
    one, nought = torch.ones(4), torch.zeros(4)
    assert adaptive_weight(one, nought).item() == 1e4
    assert adaptive_weight(one, nought, limit=7.0).item() == 7.0
    assert adaptive_weight(nought, one).item() == 0.0


@pytest.mark.parametrize("strange", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_adaptive_weight_is_zero_where_a_gradient_is_not_finite(strange, which):
    gradients = [torch.ones(3), torch.ones(3)]
    gradients[which][1] = strange
    assert adaptive_weight(*gradients).item() == 0.0


def test_three_phases_in_batches():
    schedule = AdversarialSchedule(weight=0.8, start=10, warmup=5, ramp=3)
    assert [schedule.discriminator_trains(batch) for batch in (0, 9, 10, 11, 1000)] == [False, False, True, True, True]
    heard = {9: 0.0, 10: 0.0, 14: 0.0, 15: 0.2, 16: 0.4, 17: 0.6, 18: 0.8, 1000: 0.8}
    assert {batch: schedule.generator_weight(batch) for batch in heard} == pytest.approx(heard)


def test_at_once_without_warm_up_and_ramp():
    schedule = AdversarialSchedule(weight=0.5, start=2)
    assert [schedule.generator_weight(batch) for batch in range(4)] == [0.0, 0.0, 0.5, 0.5]


def test_weight_zero_never_plays():
    schedule = AdversarialSchedule(weight=0.0, start=0)
    assert not schedule.discriminator_trains(100)
    assert schedule.generator_weight(100) == 0.0

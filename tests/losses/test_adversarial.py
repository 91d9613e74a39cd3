import pytest
import torch

from latentdiff.losses.adversarial import AdversarialSchedule, adaptive_weight, hinge_discriminator, hinge_generator


def test_hinge_losses_in_closed_form():
    """E max(0, 1 - D(x)) = (0 + 0.5 + 3) / 3 and E max(0, 1 + D(r)) = (3 + 0 + 1) / 3."""
    real, fake = torch.tensor([2.0, 0.5, -2.0]), torch.tensor([2.0, -3.0, 0.0])
    assert hinge_discriminator(real, fake).item() == pytest.approx(0.5 * (3.5 / 3 + 4 / 3))
    assert hinge_generator(fake).item() == pytest.approx(1 / 3)


def test_discriminator_that_is_sure_has_no_gradient():
    real, fake = torch.full((2, 1, 3, 3), 1.5, requires_grad=True), torch.full((2, 1, 3, 3), -1.5, requires_grad=True)
    loss = hinge_discriminator(real, fake)
    loss.backward()
    assert loss == 0
    assert real.grad.abs().max() == fake.grad.abs().max() == 0


def test_losses_of_bfloat16_logits_are_float32():
    logits = torch.tensor([0.1, 0.2]).bfloat16()
    assert hinge_generator(logits).dtype == hinge_discriminator(logits, logits).dtype == torch.float32


def test_adaptive_weight_is_the_ratio_of_the_norms():
    nll, gan = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.3, 0.0], [0.0, -0.4]])
    assert adaptive_weight(nll, gan).item() == pytest.approx(5 / (0.5 + 1e-4))


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

import copy

import pytest
import torch
from torch import nn

from latentdiff.config.errors import InputError
from latentdiff.losses.regularisers import R1, LeCam


class Linear(nn.Module):
    """D(x) = w . x, spread over ``patches`` equal logits."""

    def __init__(self, w, patches=1):
        super().__init__()
        self.w, self.patches = nn.Parameter(w), patches

    def forward(self, image):
        logit = (image * self.w).sum((1, 2, 3))
        return logit.view(-1, 1, 1, 1).expand(-1, 1, self.patches, 1)


def test_r1_of_a_linear_discriminator_is_its_squared_weight():
    w = torch.arange(12.0).view(3, 2, 2)
    judge, images = Linear(w), torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    penalty = R1(weight=0.5, every=4)(judge, images)
    torch.testing.assert_close(penalty, torch.full((2,), 0.5 * 0.5 * 4 * w.square().sum().item()))
    penalty.mean().backward()
    torch.testing.assert_close(judge.w.grad, 0.5 * 4 * w)


def test_r1_is_a_mean_over_patches():
    """n independent patches whose gradients have norm g each: |sum|^2 = n g^2, divided by n."""

    class Patches(nn.Module):
        def forward(self, image):
            return 3.0 * image[:, :1]

    penalty = [R1(weight=2.0, every=1)(Patches(), torch.zeros(1, 3, size, size)).item() for size in (2, 5)]
    assert penalty == pytest.approx([9.0, 9.0])


def test_r1_is_lazy_and_outside_autocast():
    assert [n for n in range(10) if R1(every=4).due(n)] == [0, 4, 8]
    with torch.autocast("cpu", torch.bfloat16):
        penalty = R1()(nn.Conv2d(3, 1, 1), torch.ones(1, 3, 2, 2))
    assert penalty.dtype is torch.float32


def test_lecam_in_closed_form():
    lecam = LeCam(weight=0.5, decay=0.75)
    real, fake = torch.tensor([[2.0, 4.0]]), torch.tensor([[-1.0, -1.0]])
    assert lecam(real, fake).item() == 0.0
    lecam.update(3.0, -1.0)  # the first is taken as it is
    lecam.update(1.0, 1.0)  # 1/2 of it, then 2/3, then 3/4
    assert (lecam.values["real"], lecam.values["fake"]) == (2.0, 0.0)
    assert lecam(real, fake).item() == pytest.approx(0.5 * ((4 + 16) / 2 + 9))
    for _ in range(2):
        lecam.update(2.0, 8.0)
    assert lecam.values["fake"] == pytest.approx((0.0 * 2 / 3 + 8 / 3) * 0.75 + 2.0)


def test_lecam_goes_on_from_its_state():
    before = LeCam()
    for n in range(5):
        before.update(float(n), -float(n))
    after = LeCam()
    after.load_state_dict(copy.deepcopy(before.state_dict()), strict=True)
    assert after.values == before.values
    before.update(9.0, 1.0)
    after.update(9.0, 1.0)
    logits = torch.ones(2, 1, 3, 3)
    torch.testing.assert_close(after(logits, -logits), before(logits, -logits), rtol=0, atol=0)


@pytest.mark.parametrize(
    "make", [lambda: R1(every=0), lambda: R1(weight=-1.0), lambda: LeCam(decay=1.0), lambda: LeCam(weight=-1.0)]
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(InputError, match="expected weight >= 0 and"):
        make()

import pytest
import torch
from torch.nn import functional as F
from torch_fidelity.metric_isc import isc_features_to_metric
from torchmetrics.image.inception import InceptionScore as TorchmetricsScore

from latentdiff.config.errors import InputError
from latentdiff.metrics.inception_score import InceptionScore, inception_score
from latentdiff.metrics.on_features import Naming


def logits(n, classes=10, seed=0):
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


def test_unsure_is_one_and_sure_of_all_classes_equally_is_their_number():
    assert inception_score(torch.zeros(50, 7)) == pytest.approx(1, abs=1e-12)
    assert inception_score(logits(1).expand(50, 10)) == pytest.approx(1, abs=1e-12), "one image again and again"
    sure = torch.arange(70) % 7
    assert inception_score(1e4 * F.one_hot(sure, 7)) == pytest.approx(7, abs=1e-9)
    assert inception_score(1e4 * F.one_hot(torch.zeros(9, dtype=torch.int64), 7)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("splits", [1, 10])
def test_equals_torch_fidelity_on_the_same_splits(on_sets, splits):
    x = logits(203)
    found = on_sets(InceptionScore(splits=splits), {"logits": x}, part=50)
    oracle = isc_features_to_metric(x, splits, shuffle=False)
    assert found["is_net_n203"] == pytest.approx(oracle["inception_score_mean"], rel=1e-9)
    assert found["is_sd_net_n203"] == pytest.approx(oracle["inception_score_std"], rel=1e-9, abs=1e-12)


def test_equals_torchmetrics_on_one_split(on_sets):
    x = logits(100)

    class Identity(torch.nn.Module):
        num_features = 10

        def forward(self, given):
            return given

    theirs = TorchmetricsScore(feature=Identity(), splits=1, normalize=False)
    theirs.update(x)
    assert on_sets(InceptionScore(splits=1), {"logits": x})["is_net_n100"] == pytest.approx(
        float(theirs.compute()[0]), rel=1e-5
    )


def test_order_counts_between_splits_alone(on_sets):
    x = logits(40)
    whole, turned = (on_sets(InceptionScore(splits=1), {"logits": z}) for z in (x, x.flip(0)))
    assert whole == pytest.approx(turned, rel=1e-12)
    ordered = on_sets(InceptionScore(splits=2), {"logits": x})["is_net_n40"]
    assert ordered == pytest.approx((inception_score(x[:20]) + inception_score(x[20:])) / 2, rel=1e-12)


def test_names_and_refusals(on_sets):
    naming = Naming("net", published=True, count=40, reconstructions=True)
    named = on_sets(lambda rows, _, __: InceptionScore(splits=2)(rows, None, naming), {"logits": logits(40)})
    assert list(named) == ["ris_n40", "ris_sd_n40"]
    with pytest.raises(InputError, match="10 splits needs at least 20 images, got 19"):
        InceptionScore().check(None, 19)
    with pytest.raises(InputError, match="at least 1 split"):
        InceptionScore(splits=0)

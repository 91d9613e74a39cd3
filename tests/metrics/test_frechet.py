import math

import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from latentdiff.config.errors import InputError
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.gaussian import FrechetStatistics, frechet_distance, frechet_distance_of
from latentdiff.metrics.on_features import Naming


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def gaussian(mean, covariance):
    return FrechetStatistics(torch.as_tensor(mean).double(), torch.as_tensor(covariance).double(), 1000)


def between(x, y):
    return frechet_distance_of(x, FrechetStatistics.of(y))


class Network:
    """What a measure's check reads of features."""

    def __init__(self, published, name="net"):
        self.published, self.name, self.layers = published, name, {"pool": 8}


def test_closed_forms():
    d, eye = 64, torch.eye(64)
    zero, one = torch.zeros(d), torch.ones(d)
    assert frechet_distance(gaussian(zero, eye), gaussian(one, eye)) == pytest.approx(64, abs=1e-9)
    assert frechet_distance(gaussian(zero, eye), gaussian(zero, 4 * eye)) == pytest.approx(64, abs=1e-9)
    a = torch.linspace(0.1, 2, d, dtype=torch.float64)
    commuting = frechet_distance(gaussian(zero, a.diag()), gaussian(zero, a.flip(0).diag()))
    assert commuting == pytest.approx(22.674596632194, abs=1e-11)


@pytest.mark.parametrize(("n", "d"), [(300, 16), (40, 64)])
def test_zero_to_itself_symmetric_and_blind_to_order(n, d):
    x, y = normal(n, d, 0), 1.5 * normal(n + 20, d, 1) + 0.3
    trace = float(FrechetStatistics.of(x).covariance.trace())
    assert between(x, x) <= 1e-6 * trace
    assert between(x, y) == pytest.approx(between(y, x), rel=1e-7)
    assert between(x.flip(0), y) == pytest.approx(between(x, y), abs=1e-9)


def test_statistics_are_torch_cov_far_from_zero_too():
    x = normal(3000, 8, 0) * 0.1 + 1000
    fitted = FrechetStatistics.of(x)
    assert torch.allclose(fitted.mean, x.double().mean(0), rtol=1e-12)
    assert torch.allclose(fitted.covariance, torch.cov(x.double().T), atol=1e-12)


def test_with_fewer_rows_than_features_the_nuclear_norm_of_both_is_the_same():
    x, y = normal(20, 48, 0), normal(30, 48, 1) * 1.2 + 0.1
    a, b = ((z - z.mean(0)).double() / (len(z) - 1) ** 0.5 for z in (x, y))
    shift = (x.double().mean(0) - y.double().mean(0)).square().sum()
    exact = float(shift + a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum())
    assert between(x, y) == pytest.approx(exact, rel=1e-6)
    assert frechet_distance(FrechetStatistics.of(x), FrechetStatistics.of(y)) == pytest.approx(exact, rel=1e-5)


def test_bias_of_a_perfect_generator():
    # 2 d / N + d (d + 1) / (2 N) for two samples of N(0, I): 2.208 at d = 64, N = 1000
    values = torch.tensor([between(normal(1000, 64, 2 * i), normal(1000, 64, 2 * i + 1)) for i in range(12)])
    assert abs(float(values.mean()) - 2.208) < 3 * float(values.std()) / math.sqrt(12) + 0.01
    assert float(values.std()) < 0.15


def test_equals_torch_fidelity_on_the_same_features():
    x, y = normal(400, 24, 0), normal(300, 24, 1) * 1.3 + 0.2
    statistics = [fid_features_to_statistics(each.double()) for each in (x, y)]
    oracle = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert between(x, y) == pytest.approx(oracle, rel=1e-6)


@pytest.mark.parametrize("d", [8, 64])
def test_the_size_of_parts_changes_only_rounding(on_sets, d):
    x, y = normal(50, d, 0), normal(60, d, 1) + 0.5
    values = [on_sets(FrechetDistance(), x, y, part=part)["fd_net_n50"] for part in (1, 7, 64, None)]
    assert values == pytest.approx([between(x, y)] * 4, rel=1e-9)


def test_a_reference_needs_moments_alone(on_sets):
    class Moments:
        count = 60

        def moments(self, layer):
            return FrechetStatistics.of(y)

    for d in (8, 64):
        x, y = normal(50, d, 0), normal(60, d, 1) + 0.5
        measure = FrechetDistance()
        found = on_sets(lambda rows, _, naming, m=measure: m(rows, Moments(), naming), x)
        assert found["fd_net_n50"] == pytest.approx(between(x, y), rel=1e-9)


class Moments:
    """A reference of so many images."""

    def __init__(self, count):
        self.count = count

    def moments(self, layer):
        return FrechetStatistics(torch.zeros(2).double(), torch.eye(2).double(), self.count)


def test_only_the_published_inception_with_enough_images_is_a_fid(on_sets):
    def names(measure, published, count, rebuilt=False):
        naming = Naming("net", published, count, rebuilt)
        return next(iter(on_sets(lambda rows, *_: measure(rows, Moments(None), naming), x)))

    x = normal(10, 2, 0)
    assert names(FrechetDistance(), True, 10_000) == "fid_n10000"
    assert names(FrechetDistance(), True, 9_999) == "fd_net_n9999"
    assert names(FrechetDistance(), False, 50_000) == "fd_net_n50000"
    assert names(FrechetDistance(), True, 10_000, True) == "rfid_n10000"
    assert names(FrechetDistance(), True, 9_999, True) == "rfd_net_n9999"
    spatial, logits = FrechetDistance(layer="spatial"), FrechetDistance(layer="logits")
    x = {"spatial": x, "logits": x}
    assert (names(spatial, True, 10_000), names(spatial, True, 100)) == ("sfid_n10000", "fd-spatial_net_n100")
    assert names(logits, True, 10_000) == "fd-logits_net_n10000"


@pytest.mark.parametrize(
    ("count", "name"), [(None, "fid_n10000"), (10_000, "fid_n10000"), (9_999, "fd_net_n10000"), (5, "fd_net_n10000")]
)
def test_a_fid_is_one_to_enough_real_images_too(on_sets, count, name):
    measure, naming = FrechetDistance(), Naming("net", True, 10_000)
    assert list(on_sets(lambda rows, *_: measure(rows, Moments(count), naming), normal(10, 2, 0))) == [name]


def test_strict_refuses_a_reference_that_is_too_small(on_sets):
    strict, naming = FrechetDistance(strict=True), Naming("net", True, 10_000)
    for count in (None, 10_000):
        strict.check_reference(count)
    FrechetDistance().check_reference(5)
    with pytest.raises(InputError, match=r"'fid' is the name of a distance to 10000 real images.*these are 9999"):
        strict.check_reference(9_999)
    with pytest.raises(InputError, match="these are 9999"):
        on_sets(lambda rows, *_: strict(rows, Moments(9_999), naming), normal(10, 2, 0))
    with pytest.raises(InputError, match="'logits' have no published name"):
        FrechetDistance(layer="logits", strict=True)


def test_refusals():
    for strict, published, count, words in (
        (False, True, 1, "at least 2 images, got 1"),
        (True, True, 9_999, "this would be one by net of 9999"),
        (True, False, 50_000, "this would be one by net of 50000"),
    ):
        with pytest.raises(InputError, match=words):
            FrechetDistance(strict=strict).check(Network(published), count)
    FrechetDistance(strict=True).check(Network(True), 10_000)
    FrechetDistance().check(Network(False), 2)
    with pytest.raises(ValueError, match="at least 2 images"):
        between(torch.zeros(1, 4), torch.zeros(3, 4))

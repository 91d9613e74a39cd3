import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.metrics.density_coverage import DensityCoverage
from latentdiff.metrics.precision_recall import PrecisionRecall


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def both(found):
    density, coverage = found.values()
    return density, coverage


def test_is_its_definition(on_sets):
    x, y, k = 1.2 * normal(120, 6, 0), normal(100, 6, 1) + 0.3, 5
    own = torch.cdist(y.double(), y.double()).sort(dim=1).values[:, k]
    inside = torch.cdist(x.double(), y.double()) <= own
    expected = int(inside.sum()) / (k * 120), float(inside.any(dim=0).double().mean())
    found = on_sets(DensityCoverage(), x, y, part=11)
    assert list(found) == ["density_net_n120", "coverage_net_n120"]
    assert both(found) == pytest.approx(expected, rel=1e-12)


def test_two_samples_of_one_law(on_sets):
    # arXiv:2002.09797, section 3.3: E density = 1, E coverage = 1 - prod_{i=1..k} (N - i) / (2 N - i), with N = M
    n, k = 300, 5
    found = torch.tensor(
        [both(on_sets(DensityCoverage(), normal(n, 8, 2 * i), normal(n, 8, 2 * i + 1))) for i in range(6)]
    )
    expected = 1.0
    for i in range(1, k + 1):
        expected *= (n - i) / (2 * n - i)
    assert float(found[:, 0].mean()) == pytest.approx(1, abs=0.05)
    assert float(found[:, 1].mean()) == pytest.approx(1 - expected, abs=0.01)


def test_disjoint_sets_and_a_missing_mode(on_sets):
    x = normal(200, 8, 0)
    assert both(on_sets(DensityCoverage(), x, x + 100)) == (0, 0)
    two_modes = torch.cat([normal(100, 8, 1), normal(100, 8, 2) + 50])
    assert both(on_sets(DensityCoverage(), x, two_modes))[1] == pytest.approx(0.5, abs=0.05)


def test_an_outlier_of_the_real_images_raises_precision_and_hardly_density(on_sets):
    real = torch.cat([normal(200, 8, 0), torch.full((1, 8), 20.0)])
    generated = normal(200, 8, 1) + 8
    assert on_sets(PrecisionRecall(), generated, real)["precision_net_n200"] > 0.9
    assert on_sets(DensityCoverage(), generated, real)["density_net_n200"] < 0.25


def test_refuses_too_few_for_a_neighbour():
    with pytest.raises(InputError, match="more than 5 generated images, got 5"):
        DensityCoverage().check(None, 5)


@pytest.mark.parametrize("options", [{"k": 0}, {"k": -1}, {"k": 5, "count": 5}, {"count": 0}])
def test_options_without_a_neighbour_are_refused(options):
    with pytest.raises(InputError, match="DensityCoverage: k must be at least 1, and count above k or null"):
        DensityCoverage(**options)
    DensityCoverage(k=5, count=6)

import pytest
import torch
from torch.nn import functional as F
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.kid import poly_mmd

from latentdiff.config.errors import InputError
from latentdiff.metrics import kernel_distance
from latentdiff.metrics.kernel_distance import GaussianKernelDistance, KernelDistance, cubic_kernel, squared_mmd
from latentdiff.metrics.on_features import Naming


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_by_hand():
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0], [3.0]])
    k = lambda a, b: (a * b + 1) ** 3  # noqa: E731
    pairs_y = (k(0, 1) + k(0, 3) + k(1, 3)) / 3
    between = sum(k(a, b) for a in (1, 2) for b in (0, 1, 3)) / 6
    assert squared_mmd(x, y, cubic_kernel) == pytest.approx(k(1, 2) + pairs_y - 2 * between, rel=1e-12)


def test_one_full_subset_equals_torchmetrics_and_torch_fidelity(on_sets):
    x, y = normal(200, 32, 0), 1.1 * normal(200, 32, 1) + 0.1
    found = on_sets(KernelDistance(subsets=3, subset_size=200), x, y)
    options = {"kid_subsets": 1, "kid_subset_size": 200, "kid_kernel": "poly", "verbose": False}
    oracle = kid_features_to_metric(x.double(), y.double(), **options)["kernel_inception_distance_mean"]
    assert found["kid_net_n200"] == pytest.approx(oracle, rel=1e-9)
    assert found["kid_net_n200"] == pytest.approx(float(poly_mmd(x.double(), y.double())), rel=1e-9)
    assert found["kid_sd_net_n200"] == pytest.approx(0, abs=1e-12)


def test_equal_laws_give_zero_on_average_and_negative_values_stay(on_sets):
    values = torch.tensor(
        [
            on_sets(KernelDistance(subsets=5, subset_size=100), normal(300, 16, 2 * i), normal(300, 16, 2 * i + 1))[
                "kid_net_n300"
            ]
            for i in range(30)
        ]
    )
    assert abs(float(values.mean())) < 3 * float(values.std()) / 30**0.5
    assert 5 < int((values < 0).sum()) < 25


def test_rows_in_another_order_and_other_blocks_change_only_rounding(monkeypatch):
    x, y = normal(60, 8, 0), normal(50, 8, 1) + 0.2
    kernels = (cubic_kernel, GaussianKernelDistance()._kernel)
    before = [squared_mmd(x, y, kernel) for kernel in kernels]
    assert [squared_mmd(y, x.flip(0), kernel) for kernel in kernels] == pytest.approx(before, rel=1e-9)
    for block in (1, 7, 59):
        monkeypatch.setattr(kernel_distance, "BLOCK", block)
        assert [squared_mmd(x, y, kernel) for kernel in kernels] == pytest.approx(before, rel=1e-9)


def test_subsets_are_those_of_the_seed(on_sets):
    x, y = normal(60, 8, 0), normal(60, 8, 1) + 0.2
    first, again, other = (on_sets(KernelDistance(subset_size=20, seed=seed), x, y, part=7) for seed in (0, 0, 1))
    assert first == again != other
    assert first["kid_sd_net_n60"] > 0


def test_cmmd_is_its_formula_without_the_diagonal(on_sets):
    x, y = normal(40, 12, 0), normal(30, 12, 1) + 1
    a, b = F.normalize(x.double(), dim=1), F.normalize(y.double(), dim=1)
    table = lambda p, q: torch.exp(-(torch.cdist(p, q) ** 2) / 200)  # noqa: E731
    within = [float((table(p, p).sum() - len(p)) / (len(p) * (len(p) - 1))) for p in (a, b)]
    expected = 1000 * (sum(within) - 2 * float(table(a, b).mean()))
    found = on_sets(GaussianKernelDistance(), x * 8, y)
    assert found == {"cmmd_net_n40": pytest.approx(expected, rel=1e-9)}
    naming = Naming("net", published=True, count=40)
    assert list(on_sets(lambda r, ref, _: GaussianKernelDistance()(r, ref, naming), x, y)) == ["cmmd_net_n40"]
    biased = 1000 * float(table(a, a).mean() + table(b, b).mean() - 2 * table(a, b).mean())
    assert 0 < biased - expected < 1000 * 0.01 * (1 / 40 + 1 / 30), "what the paper's program adds"


def test_too_few_images(on_sets):
    with pytest.raises(
        InputError, match=r"subsets of 1000 images, there are 999.*metrics\.GROUP\.measures\.kid\.subset_size=N"
    ):
        KernelDistance().check(None, 999)
    with pytest.raises(InputError, match="there are 10 real ones"):
        on_sets(KernelDistance(subset_size=20), normal(20, 4, 0), normal(10, 4, 1))
    for make in (lambda: KernelDistance(subset_size=1), lambda: KernelDistance(subsets=0)):
        with pytest.raises(InputError, match="subset of 2 images"):
            make()
    with pytest.raises(InputError, match="cmmd needs at least 2 images"):
        GaussianKernelDistance().check(None, 1)
    with pytest.raises(InputError, match="sigma must be above 0"):
        GaussianKernelDistance(sigma=0)

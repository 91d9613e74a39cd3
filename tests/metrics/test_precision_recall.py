import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from latentdiff.config.errors import InputError
from latentdiff.metrics import neighbour_balls
from latentdiff.metrics.neighbour_balls import ball_radii, distance_blocks
from latentdiff.metrics.precision_recall import PrecisionRecall


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def both(found):
    precision, recall = found.values()
    return precision, recall


def table(x, y):
    return torch.cat([squared for _, squared in distance_blocks(x, y)])


def test_textbook_cases(on_sets):
    x = normal(400, 8, 0)
    assert both(on_sets(PrecisionRecall(), x, x)) == (1, 1)
    assert both(on_sets(PrecisionRecall(), x, x + 100)) == (0, 0)
    x, two_modes = normal(1000, 2, 3), torch.cat([normal(500, 2, 1), normal(500, 2, 2) + 50])
    precision, recall = both(on_sets(PrecisionRecall(), x, two_modes))
    assert precision > 0.9
    assert recall == pytest.approx(0.5, abs=0.05)
    swapped = on_sets(PrecisionRecall(), two_modes, x)
    assert list(swapped) == ["precision_net_n1000", "recall_net_n1000"]
    assert both(swapped) == (recall, precision)


def test_equals_torch_fidelity(on_sets):
    x, y = 1.2 * normal(300, 8, 0), normal(250, 8, 1) + 0.3
    for k in (1, 2, 3):
        options = {"prc_neighborhood": k, "prc_batch_size": 100, "save_cpu_ram": False, "verbose": False}
        oracle = prc_features_to_metric(x.double(), y.double(), **options)
        found = both(on_sets(PrecisionRecall(k=k), x, y))
        assert min(found) > 0.1
        assert max(found) < 1
        assert found == pytest.approx((oracle["precision"], oracle["recall"]), abs=1e-7)


def test_distances_are_exact_where_a_float32_product_loses_them():
    x = 1000 + 1e-3 * normal(100, 64, 0)
    y = torch.cat([x[:40], 1000 + 1e-3 * normal(60, 64, 1)])
    exact = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2
    lost = torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist") ** 2
    assert torch.allclose(table(x, y), exact, rtol=1e-6, atol=0)
    assert not torch.allclose(lost.double(), exact, rtol=0.1, atol=1e-5)
    assert torch.equal(table(x, y)[:40, :40].diagonal(), torch.zeros(40).double()), "the same features"


def test_collapsed_sets_are_found_in_themselves_alone(on_sets):
    one = normal(1, 32, 0).expand(30, 32) * 50
    assert both(on_sets(PrecisionRecall(), one, one.clone())) == (1, 1)
    assert both(on_sets(PrecisionRecall(), one, one * 1.001)) == (0, 0)


def test_blocks_and_parts_change_nothing(on_sets, monkeypatch):
    x, y = normal(90, 4, 0), normal(80, 4, 1) + 0.5
    before, radii = on_sets(PrecisionRecall(), x, y), ball_radii(x, 3)
    exact = torch.cdist(x.double(), x.double()).sort(dim=1).values[:, 3] ** 2
    assert torch.allclose(radii, exact, rtol=1e-9)
    for block in (1, 7, 89):
        monkeypatch.setattr(neighbour_balls, "BLOCK", block)
        assert on_sets(PrecisionRecall(), x, y, part=block) == before


def test_more_images_than_the_count_are_a_seeded_subset_and_named_so(on_sets):
    x, y = normal(90, 4, 0), normal(80, 4, 1) + 0.5
    first, again, other = (on_sets(PrecisionRecall(count=50, seed=seed), x, y) for seed in (0, 0, 1))
    assert first == again != other
    assert set(first) == {"precision_net_n50", "recall_net_n50"}
    assert on_sets(PrecisionRecall(count=None), x, y) == on_sets(PrecisionRecall(), x, y)


def test_refuses_too_few_for_a_neighbour(on_sets):
    with pytest.raises(InputError, match="3-th nearest neighbour needs more than 3 generated images, got 3"):
        PrecisionRecall().check(None, 3)
    with pytest.raises(InputError, match="more than 3 real images, got 2"):
        on_sets(PrecisionRecall(), normal(9, 4, 0), normal(2, 4, 1))


@pytest.mark.parametrize("options", [{"k": 0}, {"k": -1}, {"k": 5, "count": 5}, {"count": 0}])
def test_options_without_a_neighbour_are_refused(options):
    with pytest.raises(InputError, match="PrecisionRecall: k must be at least 1, and count above k or null"):
        PrecisionRecall(**options)
    PrecisionRecall(k=5, count=6)

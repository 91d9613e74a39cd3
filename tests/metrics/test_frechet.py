import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance

from latentdiff.metrics.features import INCEPTION_NAME, RandomConvFeatures
from latentdiff.metrics.frechet import (
    FrechetDistance,
    FrechetStatistics,
    frechet_distance,
    frechet_distance_of,
)
from latentdiff.types import Batch


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def gaussian(mean, covariance):
    return FrechetStatistics(torch.as_tensor(mean).double(), torch.as_tensor(covariance).double(), 1000)


def batch(start, count):
    return Batch(keys=[str(start + i) for i in range(count)], start=start)


def images(n, seed=0, size=16):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


class Flat:
    """The first 8 pixel values as features."""

    dim = 8

    def __init__(self, name="flat"):
        self.name = name

    def to(self, device):
        return self

    def __call__(self, images):
        return images.flatten(1)[:, :8].float()


def test_closed_forms():
    d, eye = 64, torch.eye(64)
    zero, one = torch.zeros(d), torch.ones(d)
    assert frechet_distance(gaussian(zero, eye), gaussian(one, eye)) == pytest.approx(64, abs=1e-9)
    assert frechet_distance(gaussian(zero, eye), gaussian(zero, 4 * eye)) == pytest.approx(64, abs=1e-9)
    a = torch.linspace(0.1, 2, d, dtype=torch.float64)
    commuting = frechet_distance(gaussian(zero, a.diag()), gaussian(zero, a.flip(0).diag()))
    assert commuting == pytest.approx(22.674596632194, abs=1e-11)


def test_zero_to_itself_symmetric_and_blind_to_order():
    x, y = normal(300, 16, 0), 1.5 * normal(200, 16, 1) + 0.3
    assert frechet_distance_of(x, x) <= 1e-6 * 16
    assert frechet_distance_of(x, y) == pytest.approx(frechet_distance_of(y, x), abs=1e-9)
    assert frechet_distance_of(x.flip(0), y) == pytest.approx(frechet_distance_of(x, y), abs=1e-9)


def test_statistics_are_torch_cov():
    x = normal(3000, 8, 0) * 3 + 1
    fitted = FrechetStatistics.of(x)
    assert torch.allclose(fitted.mean, x.double().mean(0), atol=1e-12)
    assert torch.allclose(fitted.covariance, torch.cov(x.double().T), atol=1e-11)


def test_few_images_nuclear_norm_equals_the_eigen_form():
    x, y = normal(20, 48, 0), normal(30, 48, 1) * 1.2 + 0.1
    eigen = frechet_distance(FrechetStatistics.of(x), FrechetStatistics.of(y))
    assert frechet_distance_of(x, y) == pytest.approx(eigen, rel=1e-5)


def test_bias_of_a_perfect_generator():
    # 2 d / N + d (d + 1) / (2 N) for two samples of N(0, I): 2.208 at d = 64, N = 1000
    values = [frechet_distance_of(normal(1000, 64, 2 * i), normal(1000, 64, 2 * i + 1)) for i in range(8)]
    assert sum(values) / 8 == pytest.approx(2.208, rel=0.02)


def test_equals_torchmetrics_with_the_same_features():
    extractor = RandomConvFeatures(dim=32, scales=2)

    class Adapter(torch.nn.Module):
        num_features = 32

        def forward(self, x):
            return extractor(x)

    oracle = FrechetInceptionDistance(feature=Adapter(), input_img_size=(3, 16, 16), normalize=False)
    ours = FrechetDistance(features=extractor)
    fake, real = images(150, 0), images(150, 1) // 2
    oracle.update(fake, real=False)
    oracle.update(real, real=True)
    ours.update(fake, batch(0, 150))
    ours.update_reference(real, batch(0, 150))
    assert ours.compute()[f"fd_{extractor.name}_n150"] == pytest.approx(float(oracle.compute()), rel=1e-4)


def test_equals_torch_fidelity_on_the_same_features():
    x, y = normal(400, 24, 0), normal(300, 24, 1) * 1.3 + 0.2
    statistics = [fid_features_to_statistics(each.double()) for each in (x, y)]
    oracle = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance_of(x, y) == pytest.approx(oracle, rel=1e-6)


def test_batches_and_their_order_change_no_bit():
    fake, real = images(40), images(40, 1)
    results = []
    for chunks in ([(0, 40)], [(20, 40), (0, 20)], [(33, 40), (7, 33), (0, 7)]):
        metric = FrechetDistance(features=Flat())
        for start, stop in chunks:
            metric.update(fake[start:stop], batch(start, stop - start))
            metric.update_reference(real[start:stop], batch(start, stop - start))
        results.append(metric.compute()["fd_flat_n40"])
    assert results[0] == results[1] == results[2] > 0


def test_only_the_published_inception_with_enough_images_is_a_fid():
    assert FrechetDistance(features=Flat(INCEPTION_NAME)).result_name(10_000) == "fid_n10000"
    assert FrechetDistance(features=Flat(INCEPTION_NAME)).result_name(9_999) == f"fd_{INCEPTION_NAME}_n9999"
    assert FrechetDistance(features=Flat()).result_name(50_000) == "fd_flat_n50000"
    rebuilt = FrechetDistance(features=Flat(INCEPTION_NAME)).of_reconstructions()
    assert (rebuilt.result_name(10_000), rebuilt.result_name(9_999)) == ("rfid_n10000", f"fd_{INCEPTION_NAME}_n9999")
    assert FrechetDistance(features=Flat()).of_reconstructions().result_name(50_000) == "fd_flat_n50000"


def test_refuses_repeated_missing_and_single_images():
    metric = FrechetDistance(features=Flat())
    with pytest.raises(ValueError, match="no image was measured"):
        metric.compute()
    metric.update(images(4), batch(0, 4))
    metric.update(images(2), batch(3, 2))
    with pytest.raises(ValueError, match="1 images were measured more than once"):
        metric.compute()
    with pytest.raises(ValueError, match="at least 2 images"):
        frechet_distance_of(torch.zeros(1, 4), torch.zeros(3, 4))


def test_describes_itself_for_the_card():
    metric = FrechetDistance(features=Flat())
    metric.update_reference(images(5), batch(0, 5))
    assert metric.describe() == {"features": "flat", "dim": 8, "reference_images": 5}

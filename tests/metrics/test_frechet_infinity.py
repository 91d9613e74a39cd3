import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.metrics.frechet_infinity import FrechetInfinity
from latentdiff.metrics.gaussian import FrechetStatistics, frechet_distance_of
from latentdiff.metrics.on_features import Naming


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


class Exact:
    """The reference of infinitely many images: N(0, I)."""

    def __init__(self, d):
        self.count, self.d = 10**9, d

    def moments(self, layer):
        return FrechetStatistics(torch.zeros(self.d).double(), torch.eye(self.d).double(), self.count)


class Width16:
    def __init__(self):
        self.layers = {"pool": 16}


def test_takes_the_bias_of_a_perfect_generator_away(on_sets):
    # One sample against the exact law: d / N + d (d + 1) / (4 N) = 0.105 at d = 16, N = 800
    extrapolated, plain = [], []
    for seed in range(6):
        x = normal(800, 16, seed)
        found = on_sets(lambda rows, _, naming: FrechetInfinity(least=80)(rows, Exact(16), naming), x)
        extrapolated.append(found["fd_infinity_net_n800"])
        plain.append(frechet_distance_of(x, Exact(16).moments("pool")))
        assert 0 < found["fd_infinity_sd_net_n800"] < 0.2
    mean, sd = float(torch.tensor(extrapolated).mean()), float(torch.tensor(extrapolated).std())
    assert sum(plain) / 6 == pytest.approx(16 / 800 + 16 * 17 / 3200, rel=0.15)
    assert abs(mean) < 3 * sd / 6**0.5 < 0.1


def test_finds_a_line_exactly(on_sets, monkeypatch):
    monkeypatch.setattr("latentdiff.metrics.frechet_infinity.frechet_distance", lambda a, b: 3 + 50 / a.count)
    found = on_sets(FrechetInfinity(points=5), normal(400, 4, 0), normal(400, 4, 1))
    assert found["fd_infinity_net_n400"] == pytest.approx(3, abs=1e-9)
    assert found["fd_infinity_sd_net_n400"] == pytest.approx(0, abs=1e-9)


def test_repeats_itself_and_depends_on_its_seed(on_sets):
    x, y = normal(100, 4, 0), normal(100, 4, 1)
    first, again, other = (on_sets(FrechetInfinity(seed=seed), x, y) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("layer", "real", "name"),
    [
        ("pool", None, "fid_infinity"),
        ("pool", 9_999, "fd_infinity_net"),
        ("spatial", 10_000, "sfid_infinity"),
        ("logits", None, "fd-logits_infinity_net"),
    ],
)
def test_is_called_as_the_distance_on_its_layer_is(layer, real, name):
    naming = Naming("net", True, 10_000, real=real)
    sd = name.replace("_infinity", "_infinity_sd")
    assert FrechetInfinity(layer=layer).names(naming) == [f"{name}_n10000", f"{sd}_n10000"]


def test_refuses_ranges_without_the_law():
    FrechetInfinity().check(Width16(), 32)
    for measure, count in ((FrechetInfinity(), 31), (FrechetInfinity(least=15), 100), (FrechetInfinity(least=60), 100)):
        with pytest.raises(InputError, match=r"must start at 16 or more.*option least of FrechetInfinity"):
            measure.check(Width16(), count)
    with pytest.raises(InputError, match="at least 3 points"):
        FrechetInfinity(points=2)
    with pytest.raises(InputError, match="option least of FrechetInfinity must be at least 2 images, got 1"):
        FrechetInfinity(least=1)

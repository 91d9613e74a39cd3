import hashlib

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.metrics import lpips
from latentdiff.metrics.lpips import Lpips
from latentdiff.metrics.rows import JoinedRows
from latentdiff.types import Batch

WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """A file of torchvision's layout, with weights of our own."""
    generator, state = torch.Generator().manual_seed(0), {}
    for number, before, width in zip(NUMBERS, WIDTHS, WIDTHS[1:]):
        weight = torch.randn(width, before, 3, 3, generator=generator) * (2 / (9 * before)) ** 0.5
        state |= {f"features.{number}.weight": weight, f"features.{number}.bias": torch.zeros(width)}
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return path


def images(n, seed=0):
    return torch.randint(0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_mean_of_the_network_s_distances_named_by_the_weights(vgg, monkeypatch):
    metric, x, y = Lpips(weights=str(vgg)), images(3), images(3, 1)
    two = metric.measure(y[:2], Batch(keys=["a", "b"], image=x[:2]))
    one = metric.measure(x[2:], Batch(keys=["c"], image=x[2:], start=2))
    distances = metric.network(y[:2] / 127.5 - 1, x[:2] / 127.5 - 1)
    digest = hashlib.sha256(vgg.read_bytes()).hexdigest()
    assert distances.min() > 0
    result = metric.result(JoinedRows([(0, two), (2, one)]))
    assert result == {f"lpips_vgg16-sha256-{digest[:8]}": pytest.approx(distances.sum().item() / 3, rel=1e-5)}
    assert Lpips(network=metric.network).name == "lpips"
    monkeypatch.setattr(lpips, "PUBLISHED_PREFIX", digest[:8])
    assert Lpips(weights=str(vgg)).name == "lpips_vgg16"


def test_the_published_file_is_known_by_its_name():
    assert lpips.PUBLISHED_PREFIX == "397923af"


def test_absent_weights_name_file_source_and_option(tmp_path):
    with pytest.raises(InputError, match=r"no file .*absent\.pth; get .*https://download.*option 'weights'"):
        Lpips(weights=str(tmp_path / "absent.pth"))

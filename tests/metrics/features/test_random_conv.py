import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.metrics.features.base import POOL
from latentdiff.metrics.features.random_conv import RandomConvFeatures


@pytest.fixture
def seen(batch_of):
    return lambda features, images: features(images, batch_of(images), [POOL])[POOL]


def test_the_same_everywhere(pictures, seen):
    torch.manual_seed(1)
    first = RandomConvFeatures()
    torch.manual_seed(2)
    again = RandomConvFeatures()
    x = pictures(3)
    assert seen(first, x).shape == (3, first.layers[POOL]) == (3, 256)
    assert seen(first, x).dtype == torch.float32
    assert torch.equal(seen(first, x), seen(again, x))
    assert torch.allclose(seen(first, x)[1:2], seen(first, x[1:2]), atol=1e-5)
    assert not first.state_dict()


def test_first_scale_by_hand(seen):
    features = RandomConvFeatures(dim=8, scales=1)
    values = seen(features, torch.full((1, 3, 8, 8), 255, dtype=torch.uint8))[0]
    activation = features.weight0.sum(dim=(1, 2, 3)) + features.bias0
    activation = torch.where(activation > 0, activation, 0.2 * activation)
    assert torch.allclose(values[:4], activation, atol=1e-5)
    assert torch.allclose(values[4:], torch.zeros(4), atol=1e-5)


def test_other_settings_have_other_names():
    names = {RandomConvFeatures(seed=s, dim=d).name for s, d in ((0, 256), (1, 256), (0, 128))}
    assert len(names) == 3
    assert "randconv-v1" in names
    assert not RandomConvFeatures().published


def test_autocast_outside_changes_nothing(pictures, seen):
    features, x = RandomConvFeatures(), pictures(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = seen(features, x)
    assert torch.equal(inside, seen(features, x))


def test_refusals(pictures, seen):
    with pytest.raises(InputError, match="multiple of 2"):
        RandomConvFeatures(dim=100)
    with pytest.raises(InputError, match="at least 16 pixels"):
        seen(RandomConvFeatures(), pictures(1, size=8))
    with pytest.raises(ValueError, match="uint8 images"):
        seen(RandomConvFeatures(), pictures(1).float())

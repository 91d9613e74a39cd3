import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.nn.inputs import joined_input
from latentdiff.types import Conditioning

BUILT = {"name": "Net", "in_channels": 6, "factor": 2, "context_dim": 5, "vector_dim": 3, "num_classes": 4}


def fitting(**changes):
    parts = {
        "tokens": torch.ones(1, 2, 5),
        "vector": torch.ones(1, 3),
        "label": torch.tensor([3]),
        "spatial": torch.ones(1, 2, 4, 6),
    }
    return Conditioning(**parts | changes)


def test_the_spatial_condition_follows_the_latent_in_its_dtype():
    x = torch.zeros(1, 4, 4, 6, dtype=torch.float64)
    y = joined_input(x, fitting(), **BUILT)
    assert y.dtype is torch.float64
    assert y.sum(dim=(0, 2, 3)).tolist() == [0, 0, 0, 0, 24, 24]
    alone = joined_input(x, fitting(spatial=None), **BUILT | {"in_channels": 4})
    assert alone is x


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "Net: the conditioning's tokens have width None, the Net was built for 5"),
        ({"tokens": torch.ones(1, 2, 4)}, "tokens have width 4"),
        ({"vector": torch.ones(1, 2)}, "vector have width 2, the Net was built for 3"),
        ({"label": None}, "has no class label, the Net was built with num_classes=4"),
        ({"spatial": torch.ones(1, 2, 2, 3)}, r"spatial condition is \(2, 3\), the latent \(4, 6\)"),
        ({"spatial": None}, "together have 4 channels, in_channels is 6"),
    ],
)
def test_a_condition_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        joined_input(torch.zeros(1, 4, 4, 6), fitting(**changes), **BUILT)


def test_what_the_network_was_not_built_for_and_odd_sizes_are_refused():
    with pytest.raises(InputError, match="has a class label, the Net was built with num_classes=None"):
        joined_input(torch.zeros(1, 4, 4, 6), fitting(), **BUILT | {"num_classes": None})
    with pytest.raises(InputError, match=r"multiples of 4, got \(4, 6\)"):
        joined_input(torch.zeros(1, 4, 4, 6), fitting(), **BUILT | {"factor": 4})

import pytest
import torch
import torch.nn.functional as F

from latentdiff.conditioning.semantic_map import SemanticMap, class_shares
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.types import UNLABELLED, Batch


class Codec:
    def __init__(self, factor: int):
        self.channels, self.factor = 4, factor


def maps(*shape: int, classes: int = 7, seed: int = 0) -> torch.Tensor:
    labels = torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return torch.where(torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1)) < 0.1, UNLABELLED, labels)


def batch(labels: torch.Tensor, image: torch.Tensor | None = None) -> Batch:
    return Batch(keys=[str(i) for i in range(len(labels))], segmentation=labels, image=image)


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.stack([(labels == c).float() for c in range(classes)], dim=1)


def test_shares_by_hand():
    labels = torch.tensor([[0, 0, 1, 2], [0, 1, 2, UNLABELLED]], dtype=torch.uint8)[None]
    expected = torch.tensor([[0.75, 0.0], [0.25, 0.25], [0.0, 0.5]]).view(1, 3, 1, 2)
    assert torch.equal(class_shares(labels, 3, 2), expected)


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_shares_are_ldm_s_bilinear_halvings_of_a_one_hot_map(halvings):
    labels = maps(2, 32, 48)
    expected = one_hot(labels, 7)
    for _ in range(halvings):
        expected = F.interpolate(expected, scale_factor=0.5, mode="bilinear")
    spatial = SemanticMap(classes=7)(batch(labels), Codec(2**halvings)).spatial
    assert spatial.shape == (2, 7, 32 // 2**halvings, 48 // 2**halvings)
    torch.testing.assert_close(spatial, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [1, 3])
def test_shares_are_area_averages_for_any_factor(factor):
    labels = maps(2, 12, 18)
    torch.testing.assert_close(class_shares(labels, 7, factor), F.avg_pool2d(one_hot(labels, 7), factor))


def test_the_learned_channels_mix_the_shares():
    torch.manual_seed(0)
    conditioner, labels = SemanticMap(classes=7, channels=3), maps(2, 16, 16)
    shares = SemanticMap(classes=7)(batch(labels), Codec(4)).spatial
    weight = conditioner.channel_mapper.weight.view(3, 7)
    with torch.no_grad():
        found = conditioner(batch(labels), Codec(4)).spatial
    torch.testing.assert_close(found, torch.einsum("oc,bchw->bohw", weight, shares).detach())
    assert sum(p.numel() for p in conditioner.parameters()) == 21


@pytest.mark.parametrize("channels", [None, 3])
@torch.no_grad()
def test_null_is_an_unlabelled_map(channels):
    conditioner = SemanticMap(classes=7, channels=channels)
    empty = torch.full((2, 16, 16), UNLABELLED, dtype=torch.uint8)
    null = conditioner.null(batch(maps(2, 16, 16)), Codec(4)).spatial
    assert torch.equal(conditioner(batch(empty), Codec(4)).spatial, null)
    assert null.abs().max() == 0


@torch.no_grad()
def test_dropped_samples_have_the_null_condition():
    conditioner, given, codec = SemanticMap(classes=7, channels=3, drop=0.5), batch(maps(32, 8, 8)), Codec(4)
    draws = Draws(seed=0, number=0, start=0, count=32, total=32)
    gone = conditioner.dropped(draws)["map"]
    expected = conditioner(given, codec).where(~gone, conditioner.null(given, codec))
    assert torch.equal(conditioner(given, codec, draws).spatial, expected.spatial)
    assert 6 < gone.sum() < 26
    assert torch.equal(conditioner.alone(given, codec)["map"].spatial, conditioner(given, codec).spatial)


def test_an_unknown_value_is_no_number_in_its_cell_alone():
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    labels[0, 1, 3] = 7
    spatial = SemanticMap(classes=7)(batch(labels), Codec(2)).spatial
    assert spatial[0, :, 0, 1].isnan().all()
    assert spatial.isnan().sum() == 7


def test_every_class_up_to_the_last_has_a_channel():
    labels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    spatial = SemanticMap(classes=255)(batch(labels), Codec(1)).spatial
    assert torch.equal(spatial.flatten(2)[0], torch.eye(256)[:255])


def test_bad_input():
    conditioner, labels = SemanticMap(classes=7), maps(1, 16, 16)
    with pytest.raises(InputError, match=r"the batch has none: use data with \.seg\.png"):
        conditioner(Batch(keys=["a"]), Codec(4))
    with pytest.raises(InputError, match="first stage's codec"):
        conditioner(batch(labels))
    with pytest.raises(InputError, match="multiples of the first stage's factor 5, got 16 x 16"):
        conditioner(batch(labels), Codec(5))
    with pytest.raises(InputError, match=r"image's size \(32, 32\), got \(16, 16\)"):
        conditioner(batch(labels, torch.zeros(1, 3, 32, 32)), Codec(4))
    for classes, channels in ((0, None), (256, None), (7, 0)):
        with pytest.raises(InputError, match="SemanticMap: expected"):
            SemanticMap(classes=classes, channels=channels)

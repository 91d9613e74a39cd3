import pytest
import torch

from latentdiff.evaluation.neighbours import nearest


def numbered(count):
    """Images whose pixels are their number."""
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


@pytest.mark.parametrize("block", [1, 7, 40])
def test_nearest_are_those_of_a_plain_search_in_any_blocks(block):
    generator = torch.Generator().manual_seed(0)
    samples, training = torch.randn(4, 6, generator=generator), torch.randn(40, 6, generator=generator)
    blocks = zip(training.split(block), numbered(40).split(block))
    found = nearest(samples, blocks, "net")
    apart = (samples[:, None] - training[None]).double().norm(dim=-1)
    distances, order = apart.sort(dim=1)
    assert torch.equal(found.images[:, :, 0, 0, 0].long(), order[:, :3])
    torch.testing.assert_close(found.distances, distances[:, :3].float())
    assert (found.images.shape, found.features, found.searched) == ((4, 3, 3, 2, 2), "net", 40)


def test_a_copy_of_a_training_image_is_at_distance_0_and_the_first_of_equals_is_taken():
    training = torch.tensor([[5.0, 5.0], [1.0, 2.0], [1.0, 2.0], [0.0, 0.0]])
    found = nearest(training[1:2], [(training, numbered(4))], "net", count=2)
    assert found.distances.tolist() == [[0.0, 0.0]]
    assert found.images[0, :, 0, 0, 0].tolist() == [1, 2]


def test_fewer_training_images_than_are_shown():
    found = nearest(torch.zeros(1, 2), [(torch.ones(2, 2), numbered(2))], "net")
    assert found.images.shape[:2] == (1, 2)
    with pytest.raises(ValueError, match="no training image"):
        nearest(torch.zeros(1, 2), [], "net")

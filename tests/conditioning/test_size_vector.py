import math

import pytest
import torch

from latentdiff.conditioning.size_vector import SizeVector
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.types import Batch

SIZES = torch.tensor([[480, 640, 0, 64, 512, 512], [512, 512, 0, 0, 512, 512]])


def batch() -> Batch:
    return Batch(keys=["a", "b"], size=SIZES)


def test_each_number_has_cosines_and_sines_of_its_own():
    """Frequencies 1 and 10000^(-1/2) = 1/100 of SDXL's embedding with four entries per number."""
    vector = SizeVector(frequencies=4)(batch()).vector
    assert vector.shape == (2, 24)
    for i, number in enumerate(SIZES[0].tolist()):
        expected = [math.cos(number), math.cos(number / 100), math.sin(number), math.sin(number / 100)]
        assert vector[0, 4 * i : 4 * i + 4].tolist() == pytest.approx(expected, abs=1e-4)


def test_sdxl_s_width_and_the_order_of_the_numbers():
    vector = SizeVector()(batch()).vector
    assert vector.shape == (2, 1536)
    blocks = vector.view(2, 6, 256)
    assert torch.equal(blocks[1, 0], blocks[1, 5])  # 512 and 512
    assert torch.equal(blocks[0, 2], torch.cat([torch.ones(128), torch.zeros(128)]))  # a crop at 0
    assert not torch.equal(blocks[0, 0], blocks[0, 1])


def test_null_is_zeros_and_what_dropped_samples_have():
    conditioner = SizeVector(frequencies=4, drop=0.5)
    many = Batch(keys=["x"] * 32, size=SIZES.repeat(16, 1))
    draws = Draws(seed=0, number=0, start=0, count=32, total=32)
    vector, gone = conditioner(many, None, draws).vector, conditioner.dropped(draws)["size"]
    assert 6 < gone.sum() < 26
    assert torch.equal(vector[gone], conditioner.null(many).vector[gone])
    assert torch.equal(vector[~gone], conditioner(many).vector[~gone])
    assert conditioner.null(many).vector.abs().max() == 0
    assert torch.equal(conditioner.alone(many)["size"].vector, conditioner(many).vector)


def test_sizes_are_never_dropped_by_default():
    draws = Draws(seed=0, number=0, start=0, count=2, total=2)
    assert SizeVector().drop == 0
    assert torch.equal(SizeVector()(batch(), None, draws).vector, SizeVector()(batch()).vector)


def test_bad_input():
    with pytest.raises(InputError, match=r"the batch has none: add .*SizeAndCrop"):
        SizeVector()(Batch(keys=["a"]))
    for frequencies in (0, 5):
        with pytest.raises(InputError, match=f"even number of frequencies .* got {frequencies}"):
            SizeVector(frequencies=frequencies)

import pytest
import torch

from latentdiff.conditioning.reading import codec_of, field_of, latent_size, unit_range
from latentdiff.config.errors import InputError
from latentdiff.types import Batch


class Codec:
    channels, factor = 4, 8


def test_what_is_missing_is_named():
    with pytest.raises(InputError, match="reads low res, but the batch has none: give some"):
        field_of(Batch(keys=["a"]), "low_res", "give some")
    with pytest.raises(InputError, match="first stage's codec"):
        codec_of(None)


def test_latent_size_is_the_pixels_over_the_factor():
    assert latent_size(64, 128, Codec(), "X") == (8, 16)
    for size in ((60, 64), (64, 60)):
        with pytest.raises(InputError, match=f"X: .*multiples of .* factor 8, got {size[0]} x {size[1]}"):
            latent_size(*size, Codec(), "X")


def test_unit_range_is_minus_one_to_one():
    bytes_ = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert torch.equal(unit_range(bytes_), torch.tensor([-1.0, -0.6, 1.0]))
    try:
        torch.set_default_dtype(torch.float64)
        assert unit_range(bytes_).dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)

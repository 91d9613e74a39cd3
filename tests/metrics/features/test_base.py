import pytest
import torch

from latentdiff.metrics.features.base import full_precision


@pytest.mark.parametrize("before", ["highest", "high"])
def test_matrix_products_are_whole_inside_and_as_before_afterwards(before):
    kept, seen = torch.get_float32_matmul_precision(), []

    def fail():
        with full_precision(torch.device("cpu")):
            seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            raise KeyError

    torch.set_float32_matmul_precision(before)
    try:
        with pytest.raises(KeyError):
            fail()
        assert seen == [("highest", False)]
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(kept)

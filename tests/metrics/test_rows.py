import pytest
import torch

from latentdiff.metrics.rows import JoinedRows, gathered


def part(start, stop):
    return start, {"x": torch.arange(start, stop), "said": [str(i) for i in range(start, stop)]}


def test_parts_in_any_order_are_joined_by_their_indices():
    rows = JoinedRows([part(3, 5), part(0, 3), part(5, 6)])
    assert len(rows) == 6
    assert rows.column("x").tolist() == list(range(6))
    assert rows.column("said") == [str(i) for i in range(6)]
    assert [block.tolist() for block in rows.blocks("x")] == [[0, 1, 2], [3, 4], [5]]
    with pytest.raises(KeyError):
        rows.column("y")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([part(0, 2), part(3, 5)], "images 2 to 2 are missing"),
        ([part(0, 3), part(2, 5)], "images 2 to 2 were measured more than once"),
        ([part(1, 2)], "images 0 to 0 are missing"),
        ([], "no image was measured"),
        ([(0, {"x": torch.zeros(2), "y": torch.zeros(3)})], r"got lengths \[2, 3\]"),
    ],
)
def test_every_image_once(parts, message):
    with pytest.raises(ValueError, match=message):
        JoinedRows(parts)


def test_one_process_has_all_rows_already():
    rows = gathered([(0, {"x": torch.ones(2, requires_grad=True)})])
    assert rows.column("x").tolist() == [1.0, 1.0]
    assert not rows.column("x").requires_grad

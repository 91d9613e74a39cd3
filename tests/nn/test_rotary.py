import math

import pytest
import torch

from latentdiff.nn.rotary import rotary_table, rotate


def vectors(count, dim, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_angles_are_of_the_row_and_of_the_column():
    cos, sin = rotary_table(3, 2, 8)
    assert cos.shape == sin.shape == (6, 4)
    angles = [[row, row / 100, column, column / 100] for row in range(3) for column in range(2)]
    torch.testing.assert_close(cos, torch.tensor(angles).cos())
    torch.testing.assert_close(sin, torch.tensor(angles).sin())


def test_a_pair_is_turned_by_its_angle_and_lengths_stay():
    x = vectors(6, 8)
    y = rotate(x, rotary_table(3, 2, 8))
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), atol=1e-6, rtol=0)
    assert torch.equal(y[0], x[0])
    turned = complex(*x[4, [0, 4]]) * complex(math.cos(2), math.sin(2))  # the place (2, 0)
    torch.testing.assert_close(y[4, [0, 4]], torch.tensor([turned.real, turned.imag], dtype=torch.float64))


def test_logits_depend_on_the_places_difference_alone():
    """One query and one key, at every place of a map: q k^T is the same wherever rows and columns differ alike."""
    rows, columns, dim = 5, 4, 16
    q, k = (vectors(1, dim, seed).expand(rows * columns, -1) for seed in (1, 2))
    table = rotary_table(rows, columns, dim)
    logits = (rotate(q, table) @ rotate(k, table).T).view(rows, columns, rows, columns)
    moved = logits[:-2, :-1, :-2, :-1]
    torch.testing.assert_close(logits[2:, 1:, 2:, 1:], moved, atol=1e-5, rtol=0)
    assert (logits[0, 0, 1, 0] - logits[0, 0, 0, 1]).abs() > 0.1
    assert (logits[0, 0, 1, 0] - logits[1, 0, 0, 0]).abs() > 0.1


def test_the_dtype_stays_and_an_indivisible_width_is_refused():
    assert rotate(torch.ones(2, 3, 4, 8).bfloat16(), rotary_table(2, 2, 8)).dtype is torch.bfloat16
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        rotary_table(2, 2, 6)

from __future__ import annotations

import numpy as np

from latentdiff.shapes.components import components, dilate, erode

MASK = np.array([[int(c) for c in row] for row in ("1010011", "1110010", "0000100", "1011100", "1000001")], bool)


def _flood(mask: np.ndarray) -> set[frozenset[tuple[int, int]]]:
    """Reference: depth-first flood fill over four neighbours."""
    left, found = set(zip(*(v.tolist() for v in np.nonzero(mask)))), set()
    while left:
        stack, part = [left.pop()], set()
        while stack:
            y, x = stack.pop()
            part.add((y, x))
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            stack += near
        found.add(frozenset(part))
    return found


def _pixels(mask: np.ndarray) -> frozenset[tuple[int, int]]:
    return frozenset(zip(*(v.tolist() for v in np.nonzero(mask))))


def test_components_of_a_drawn_mask():
    assert sorted(int(part.sum()) for part in components(MASK, 1)) == [1, 2, 3, 4, 5]
    assert sorted(int(part.sum()) for part in components(MASK, 3)) == [3, 4, 5]


def test_components_agree_with_flood_fill_on_random_masks():
    rng = np.random.default_rng(0)
    for density in np.linspace(0.05, 0.95, 60):
        mask = rng.random((13, 17)) < density
        parts = components(mask, 1)
        assert {_pixels(part) for part in parts} == _flood(mask)
        assert sum(int(part.sum()) for part in parts) == int(mask.sum())


def test_empty_and_full_masks():
    assert components(np.zeros((4, 4), bool), 1) == []
    assert [int(part.sum()) for part in components(np.ones((4, 4), bool), 1)] == [16]


def test_erosion_and_dilation_of_a_square_and_a_point():
    square = np.zeros((7, 7), bool)
    square[1:6, 1:6] = True
    assert int(erode(square).sum()) == 9
    point = np.zeros((7, 7), bool)
    point[3, 3] = True
    assert int(dilate(point).sum()) == 5
    np.testing.assert_array_equal(erode(dilate(point)), point)

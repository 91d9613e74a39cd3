"""Connected components and one-pixel morphology of boolean masks (H, W)."""

from __future__ import annotations

import numpy as np


def components(mask: np.ndarray, min_area: int) -> list[np.ndarray]:
    """One mask per 4-connected component of at least ``min_area`` pixels, in order of their first row.

    Unites the horizontal runs of consecutive rows that overlap.
    """
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = (values.tolist() for values in np.nonzero(edges == 1))
    ends = np.nonzero(edges == -1)[1].tolist()
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    above = 0
    for run, row in enumerate(rows):
        while rows[above] < row - 1 or (rows[above] == row - 1 and ends[above] <= starts[run]):
            above += 1
        other = above
        while rows[other] == row - 1 and starts[other] < ends[run]:
            parent[root(run)] = root(other)
            other += 1
    members: dict[int, list[int]] = {}
    for run in range(len(rows)):
        members.setdefault(root(run), []).append(run)
    found = []
    for runs in members.values():
        if sum(ends[run] - starts[run] for run in runs) >= min_area:
            part = np.zeros_like(mask, dtype=bool)
            for run in runs:
                part[rows[run], starts[run] : ends[run]] = True
            found.append(part)
    return found


def erode(mask: np.ndarray) -> np.ndarray:
    """Pixels whose four neighbours belong to the mask too; outside the image counts as outside."""
    p = np.pad(mask, 1)
    return p[1:-1, 1:-1] & p[:-2, 1:-1] & p[2:, 1:-1] & p[1:-1, :-2] & p[1:-1, 2:]


def dilate(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask and their four neighbours."""
    p = np.pad(mask, 1)
    return p[1:-1, 1:-1] | p[:-2, 1:-1] | p[2:, 1:-1] | p[1:-1, :-2] | p[1:-1, 2:]

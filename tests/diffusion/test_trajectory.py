from __future__ import annotations

import pytest
import torch

from latentdiff.diffusion.grids import Uniform
from latentdiff.diffusion.path import RectifiedFlow
from latentdiff.diffusion.samplers.euler import Euler
from latentdiff.diffusion.trajectory import Trajectory


def run(trajectory, steps=6, device="cpu"):
    """x0_hat at step i is i everywhere."""
    calls = iter(range(steps))
    x = torch.ones(2, 3, 4, 4, device=device)
    times = Uniform()(RectifiedFlow(), steps)
    return Euler()(lambda x, t: torch.full_like(x, next(calls)), RectifiedFlow(), x, times, None, trajectory)


def test_keeps_the_estimate_of_every_step_and_leaves_the_result_alone():
    trajectory = Trajectory()
    got = run(trajectory)
    assert trajectory.frames.shape == (6, 2, 3, 4, 4)
    assert trajectory.frames[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(got, run(None))


def test_keeps_the_state_where_asked():
    trajectory = Trajectory(state=True)
    got = run(trajectory)
    assert torch.equal(trajectory.frames[-1], got)
    assert not torch.equal(trajectory.frames[0], got)


@pytest.mark.parametrize(
    ("total", "frames", "kept"), [(6, 3, [1, 3, 5]), (6, 1, [5]), (6, 6, [0, 1, 2, 3, 4, 5]), (5, 9, [0, 1, 2, 3, 4])]
)
def test_evenly_ends_with_the_last_step(total, frames, kept):
    trajectory = Trajectory.evenly(total, frames)
    run(trajectory, total)
    assert trajectory.frames[:, 0, 0, 0, 0].tolist() == kept


def test_a_new_run_begins_anew():
    trajectory = Trajectory(steps=[2, 4])
    for _ in range(2):
        run(trajectory)
        assert trajectory.frames[:, 0, 0, 0, 0].tolist() == [2, 4]


def test_reads_nothing_from_the_device():
    trajectory = Trajectory()
    run(trajectory, device="meta")
    assert trajectory.frames.device.type == "meta"


def test_says_where_nothing_was_kept():
    trajectory = Trajectory(steps=[99])
    run(trajectory)
    with pytest.raises(ValueError, match="no frame"):
        _ = trajectory.frames
    with pytest.raises(ValueError, match="at least one"):
        Trajectory.evenly(5, 0)

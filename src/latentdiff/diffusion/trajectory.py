"""What a sampler passes through on its way from noise to data, as frames."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor


class Trajectory:
    """An ``on_step`` that keeps the estimate of the data after chosen steps, and leaves the sampler alone.

    Frames stay on their device, and keeping one waits for nothing. Step 0 begins anew, so one object serves runs one
    after the other; read ``frames`` in between.
    """

    def __init__(self, *, steps: Collection[int] | None = None, state: bool = False):
        """``steps``: those to keep, all where None (see ``evenly``). ``state`` keeps x itself instead of x0_hat."""
        self.steps = None if steps is None else frozenset(steps)
        self.state = state
        self._frames: list[Tensor] = []

    @classmethod
    def evenly(cls, total: int, frames: int, *, state: bool = False) -> Trajectory:
        """``frames`` of ``total`` steps at even distances, the last step always among them; all where there are fewer.

        Raises ValueError where either is below 1.
        """
        if total < 1 or frames < 1:
            raise ValueError(f"expected at least one step and one frame, got {total} steps and {frames} frames")
        frames = min(frames, total)
        return cls(steps=[round((k + 1) * total / frames) - 1 for k in range(frames)], state=state)

    def __call__(self, step: int, t_next: Tensor, x: Tensor, x0_hat: Tensor) -> None:
        if step == 0:
            self._frames = []
        if self.steps is None or step in self.steps:
            self._frames.append((x if self.state else x0_hat).detach())

    @property
    def frames(self) -> Tensor:
        """(T, B, C, h, w) in the order of the steps. Raises ValueError where none was kept."""
        if not self._frames:
            raise ValueError("no frame was kept: pass the trajectory as on_step, and name steps that the sampler makes")
        return torch.stack(self._frames)

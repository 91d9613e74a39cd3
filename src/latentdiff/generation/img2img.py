"""Image-to-image: a sampling that begins part of the way, at a given image with noise (SDEdit, arXiv:2108.01073)."""

from __future__ import annotations

import math

from torch import Tensor

from latentdiff.config.errors import InputError


def last_steps(times: Tensor, strength: float) -> Tensor:
    """The times of the grid's last floor(N strength) steps, of N: SDEdit's t0 is the first of them (algorithm 1).

    ``strength`` is a share of the steps, not of t, as in diffusers: with 50 steps and strength 0.75 the first 13 are
    left out and 37 are made, for every grid. Strength 1 makes all of them. The state they begin with,
    ``path.mix(z0, noise, t0)``, is pure noise only where alpha(t0) = 0; elsewhere a trace of the image remains
    (alpha = 0.068 at the noisiest entry of Stable Diffusion's path).

    Args:
        times: (N + 1,), descending.
        strength: in (0, 1].

    Raises:
        InputError: a strength outside (0, 1], or so small that no step remains.
    """
    steps = len(times) - 1
    if not 0 < strength <= 1:
        raise InputError(f"strength: expected a share of the steps in (0, 1], got {strength}")
    made = math.floor(steps * strength + 1e-6)  # 0.29 * 100 is a little below 29
    if made == 0:
        raise InputError(
            f"strength: {strength} of {steps} steps is not one step; give at least {math.ceil(1e4 / steps) / 1e4:g}, "
            "or more steps"
        )
    return times[steps - made :]

"""Inpainting with any model: the known region is put back at every step (RePaint, arXiv:2201.09865)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from latentdiff.config.errors import InputError
from latentdiff.types import Denoise, OnStep, Path, Sampler


@dataclass(frozen=True)
class Known:
    """What is given of the latents."""

    latents: Tensor
    """(B, C, h, w), whitened; those in the hole are not looked at."""
    hole: Tensor
    """bool (B, 1, h, w), True where latents are to be made."""

    def kept_in(self, x: Tensor, state: Tensor) -> Tensor:
        """``x`` in the hole, ``state`` of the known latents elsewhere."""
        return torch.where(self.hole, x, state)


class Repaint:
    """RePaint's algorithm 1 around a sampler, on any path: known latents, mixed to each step's time with noise of that
    step, take the place of what the sampler made of them.

    The hole is made without seeing the known latents that come into the state beside it, so the two do not fit
    (section 4.1). Resampling (section 4.2) brings them together: ``jump_length`` steps before the end, and at every
    multiple of it before that, the whole state is noised back by ``jump_length`` steps and these are made again, until
    each was made ``resample`` times. N steps become about ``resample`` N.

    The sampler starts anew after each jump: one that remembers earlier steps makes its first again at low order, and
    UniPC never corrects, as its states are replaced. The paper's is DDPM's.
    """

    def __init__(self, *, jump_length: int | None = None, resample: int = 10):
        """``jump_length``: steps of a jump; None takes N / 25, at least 1, the paper's 10 of 250.

        ``resample``: how often each is made, 10 in the paper; 1 only puts the known region back. Raises InputError
        where one is below 1.
        """
        if resample < 1 or (jump_length is not None and jump_length < 1):
            raise InputError(
                "repaint: expected resample and jump_length of at least 1 (jump_length may be null); got "
                f"resample={resample}, jump_length={jump_length}"
            )
        self.jump_length, self.resample = jump_length, resample

    def legs(self, steps: int) -> list[tuple[int, int]]:
        """First and last index into the times of each run of the sampler; the next begins a jump higher.

        Jumps start 1, 1 + j, 1 + 2 j ... steps before the end, as long as there are j steps above (the paper's
        schedule). Raises InputError where not even one fits and ``resample`` asks for it.
        """
        if self.resample == 1:
            return [(0, steps)]
        jump = max(1, round(steps / 25)) if self.jump_length is None else self.jump_length
        if jump >= steps:
            raise InputError(
                f"repaint: a jump of {jump} steps does not fit into {steps}; expected a repaint.jump_length below the "
                "number of steps (after strength), or repaint.resample=1"
            )
        legs, first = [], 0
        for left in reversed(range(1, steps - jump + 1, jump)):
            for _ in range(self.resample - 1):
                legs.append((first, steps - left))
                first = steps - left - jump
        return [*legs, (first, steps)]

    def count(self, steps: int) -> int:
        """How many steps are made in all, for a grid of ``steps``."""
        return sum(last - first for first, last in self.legs(steps))

    def __call__(
        self,
        sampler: Sampler,
        denoise: Denoise,
        path: Path,
        x: Tensor,
        times: Tensor,
        known: Known,
        noise: Callable[[str], Tensor],
        on_step: OnStep | None = None,
    ) -> Tensor:
        """x (B, C, h, w) at times[0], times (N + 1,) descending -> x at times[-1], exact where it is known.

        ``noise``: name of a draw -> standard normal of x's shape. ``on_step`` sees states with the known region put
        back; its steps are numbered on through all runs. Without jumps the sampler draws what it does by itself.
        """
        legs, total = self.legs(len(times) - 1), self.count(len(times) - 1)
        done = 0  # steps of the runs before the present one

        def noise_at(i: int) -> Tensor:
            return noise(f"step {done + i}")

        def put_back(i: int, t_next: Tensor, x: Tensor, x0_hat: Tensor) -> Tensor:
            step = done + i
            ended = step + 1 == total  # at the time of the result: noise has no place in it
            state = known.latents if ended else path.mix(known.latents, noise(f"known {step}"), t_next.expand(len(x)))
            x = known.kept_in(x, state)
            replaced = on_step(step, t_next, x, x0_hat) if on_step else None
            return x if replaced is None else replaced

        x = known.kept_in(x, path.mix(known.latents, noise("start"), times[0].to(x.device).expand(len(x))))
        for leg, (first, last) in enumerate(legs):
            if leg > 0:
                x = noised(path, x, times[legs[leg - 1][1]], times[first], noise(f"jump {leg}"))
            x = sampler(denoise, path, x, times[first : last + 1], noise_at, put_back)
            done += last - first
        return x


def noised(path: Path, x: Tensor, t: Tensor, later: Tensor, noise: Tensor) -> Tensor:
    """x at time ``t`` carried on to the noisier ``later``: a draw of q(x_later | x_t), times 0-dim.

    (alpha' / alpha) x + sqrt(sigma'^2 - (alpha' / alpha)^2 sigma^2) noise, the path's forward process.
    """
    (alpha, sigma), (alpha_later, sigma_later) = path.alpha_sigma(t), path.alpha_sigma(later)
    kept = alpha_later / alpha
    added = (sigma_later**2 - (kept * sigma) ** 2).clamp(min=0).sqrt()
    return kept * x + added * noise


def latent_hole(mask: Tensor, factor: int) -> Tensor:
    """uint8 (B, 1, H, W), 1 in the hole -> bool (B, 1, H / factor, W / factor): a cell with any hole pixel is one."""
    return max_pool2d(mask.float(), factor) > 0

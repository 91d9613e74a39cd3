"""The scale of another program's latents as this project's per-channel mean and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from latentdiff.config.errors import InputError
from latentdiff.models.autoencoder.codec import LatentCodec

LARGEST = 1e38
"""What float32 holds, rounded down."""
KNOWN = "0.18215 for Stable Diffusion 1 and 2, 0.13025 for SDXL, 1.5305 with the shift 0.0609 for SD 3"


@dataclass(frozen=True)
class Statistics:
    """What the codec whitens with, z = (latent - mean) / std, one value per latent channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def factors(self) -> tuple[float, float] | None:
        """(scale, shift) where one of each says the same as these statistics, exactly; else None."""
        if len(set(self.mean)) > 1 or len(set(self.std)) > 1:
            return None
        return 1.0 / self.std[0], self.mean[0]

    @property
    def is_one_scale(self) -> bool:
        """Whether one factor says them, as Stable Diffusion's does."""
        factors = self.factors()
        return factors is not None and factors[1] == 0.0

    def is_near(self, other: Statistics) -> bool:
        """Equal as float32, which the codec keeps them in."""
        ours, theirs = (*self.mean, *self.std), (*other.mean, *other.std)
        return len(ours) == len(theirs) and all(
            math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in zip(ours, theirs)
        )


def statistics_of(codec: LatentCodec) -> Statistics:
    """What a codec whitens with."""
    return Statistics(tuple(codec.mean.flatten().tolist()), tuple(codec.std.flatten().tolist()))


def chosen(
    own: Statistics | None, channels: int, *, scale: object = None, shift: object = None, path: object = ""
) -> Statistics:
    """The statistics to whiten with: the file's ``own``, with the user's ``scale`` and ``shift`` in place of them.

    Raises InputError where neither the file nor the user says what the scale is, or the user says no number.
    """
    for name, value in (("scale", scale), ("shift", shift)):
        if value is not None and not _is_number(value, positive=name == "scale"):
            wanted = "a number above 0" if name == "scale" else "a number"
            raise InputError(f"the {name} of the latents (first_stage.{name}) must be {wanted}, got {value!r}")
    if own is None and scale is None:
        raise InputError(
            f"'{path}' does not say how its latents are scaled; give first_stage.scale=NUMBER (in latentdiff export: "
            f"--scale NUMBER), {KNOWN}"
        )
    own = own or Statistics((0.0,) * channels, ())
    mean = own.mean if shift is None else (float(shift),) * channels  # type: ignore[arg-type]
    std = own.std if scale is None else (1.0 / float(scale),) * channels  # type: ignore[arg-type]
    return checked(mean, std, channels, path)


def checked(mean: Sequence[float], std: Sequence[float], channels: int, path: object) -> Statistics:
    """Statistics as a file gives them. Raises InputError where they are no ``channels`` usable numbers each."""
    for name, values, positive in (("mean", mean, False), ("standard deviation", std, True)):
        if len(values) != channels:
            raise InputError(
                f"'{path}' gives the {name} of {len(values)} latent channels, but its autoencoder has {channels}; "
                "use files that belong together"
            )
        if not all(_is_number(value, positive=positive) for value in values):
            raise InputError(f"'{path}' gives unusable values as the latents' {name}: {list(values)}")
    return Statistics(tuple(map(float, mean)), tuple(map(float, std)))


def _is_number(value: object, *, positive: bool) -> bool:
    """A number that float32 can hold; a positive one also with its inverse."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        return False
    return value > 1 / LARGEST or not positive

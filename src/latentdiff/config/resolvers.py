"""What our YAML files compute: ``${add:a,b}``."""

from __future__ import annotations

from omegaconf import OmegaConf


def add(*numbers: int | None) -> int | None:
    """The sum; null where any is null, as the shape of the latents is until the first stage is known."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def register() -> None:
    OmegaConf.register_new_resolver("add", add, replace=True)

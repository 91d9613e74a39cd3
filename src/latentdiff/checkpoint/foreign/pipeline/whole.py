"""A whole latent diffusion model that another program wrote, and what only its user can say of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from latentdiff.checkpoint.foreign.architecture import Foreign
from latentdiff.checkpoint.foreign.pipeline.schedule import Schedule
from latentdiff.checkpoint.foreign.statistics import Statistics
from latentdiff.checkpoint.foreign.text.architecture import ForeignText
from latentdiff.checkpoint.foreign.unet.architecture import ForeignUNet
from latentdiff.config.errors import InputError


@dataclass(frozen=True)
class Told:
    """What the user says of a model, where its files do not.

    ``prediction``: "epsilon" or "v"; ``size``: pixels of a side; ``unet_heads`` and ``text_heads``: attention heads;
    ``scale`` and ``shift`` of the latents; ``first_stage`` and ``text_encoder``: where these are, if not in the file.
    """

    prediction: str | None = None
    size: int | None = None
    unet_heads: int | None = None
    text_heads: int | None = None
    scale: float | None = None
    shift: float | None = None
    first_stage: str | Path | None = None
    text_encoder: str | Path | None = None

    def check(self) -> None:
        """Raises InputError for numbers below 1 and for an unknown prediction."""
        for name in ("size", "unet_heads", "text_heads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')}: expected a whole number of at least 1, got {value}")
        if self.prediction not in (None, "epsilon", "v"):
            raise InputError(f"--prediction: expected epsilon or v, got {self.prediction!r}")


@dataclass(frozen=True)
class Whole:
    """``statistics`` whiten the first stage's latents; ``notes``: what the user should know."""

    path: Path
    unet: ForeignUNet
    first_stage: Foreign
    statistics: Statistics
    text: ForeignText
    schedule: Schedule
    size: int
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raises InputError where the parts do not fit each other, or the UNet reads what no part gives."""
        unet, latent = self.unet.architecture, self.first_stage.architecture.latent
        where, channels = self.unet.path, latent["channels"]
        if unet.context_dim != self.text.architecture.width:
            raise InputError(
                f"'{where}': the UNet reads tokens of width {unet.context_dim}, the text encoder in "
                f"'{self.text.path}' gives width {self.text.architecture.width}; use files that belong together"
            )
        if unet.vector_dim is not None or unet.num_classes is not None:
            raise InputError(
                f"'{where}': the UNet reads a vector or a class beside the text (SDXL, unCLIP); Stable Diffusion 1 and "
                "2 are imported whole, a UNet alone with init_backbone=PATH in training"
            )
        if (unet.in_channels, unet.out_channels) != (channels, channels):
            raise InputError(
                f"'{where}': the UNet reads {unet.in_channels} channels and writes {unet.out_channels}, the first "
                f"stage's latents have {channels}; text-to-image models are imported whole, one with a spatial "
                "condition (inpainting, depth) serves training as init_backbone=PATH"
            )
        if self.size % (step := latent["factor"] * 2 ** (len(unet.channel_multipliers) - 1)):
            raise InputError(f"--size: expected a multiple of {step} for this model, got {self.size}")

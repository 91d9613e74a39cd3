"""Guidance that reads a second checkpoint: a noisy classifier, or a worse model of the same kind."""

from __future__ import annotations

import torch

from latentdiff.checkpoint.models import Checkpoint, DiffusionModel, load_classifier, load_denoiser
from latentdiff.config.errors import InputError
from latentdiff.diffusion.guidance import Autoguidance, ClassifierGuidance
from latentdiff.types import Guidance, Path

POINTS = 257
"""Times at which two paths are compared."""


class CheckpointClassifierGuidance(ClassifierGuidance):
    """``ClassifierGuidance`` with the averaged classifier of an ``experiment=classifier`` run.

    ``checkpoint``: a checkpoint directory or a run directory. Raises InputError where it is none of a classifier.
    """

    def __init__(self, *, checkpoint: str, scale: float, base: Guidance | None = None):
        loaded = load_classifier(checkpoint)
        super().__init__(classifier=loaded.classifier, scale=scale, base=base)
        self.origin = loaded

    def check_fits(self, model: DiffusionModel, latent_size: tuple[int, int]) -> None:
        """Raises InputError unless the classifier reads what the model makes, at latents of (h, w)."""
        check_same_latents("classifier", self.origin, model)
        check_same_path("classifier", self.origin, self.classifier.path, model.denoiser.path)
        if any(side % self.classifier.factor for side in latent_size):
            raise InputError(
                f"guidance.checkpoint: the classifier reads latents of multiples of {self.classifier.factor}, the "
                f"images have {latent_size[0]} x {latent_size[1]}; choose another data.size"
            )

    def describe(self) -> dict[str, object]:
        return super().describe() | _about(self.origin)


class CheckpointAutoguidance(Autoguidance):
    """``Autoguidance`` by the averaged weights of another stage-two checkpoint, with its own conditioner.

    ``checkpoint``: a checkpoint directory or a run directory. Raises InputError where it is none of stage two.
    """

    def __init__(self, *, checkpoint: str, scale: float):
        loaded = load_denoiser(checkpoint)
        super().__init__(guide=loaded.denoiser, conditioner=loaded.conditioner, scale=scale)
        self.origin = loaded

    def check_fits(self, model: DiffusionModel, latent_size: tuple[int, int]) -> None:
        """Raises InputError unless the guide makes what the model makes."""
        check_same_latents("guide", self.origin, model)
        check_same_path("guide", self.origin, self.guide.path, model.denoiser.path)
        if self.guide.t_max < model.denoiser.t_max:
            raise InputError(
                f"guidance.checkpoint: the guide '{self.origin.path}' answers up to t={self.guide.t_max:g} (its "
                f"prediction is {type(self.guide.parameterization).__name__}), sampling starts at "
                f"t={model.denoiser.t_max:g}; choose a guide with the model's prediction"
            )

    def describe(self) -> dict[str, object]:
        return super().describe() | _about(self.origin)


def check_same_latents(name: str, guide: Checkpoint, model: Checkpoint) -> None:
    """Raises InputError unless both were trained on latents of the same shape, of the same first stage."""
    ours, theirs = model.manifest, guide.manifest
    if ours.latent is not None and theirs.latent is not None and ours.latent != theirs.latent:
        raise InputError(
            f"guidance.checkpoint: the {name} '{guide.path}' reads latents of {_shape(theirs.latent)}, the model "
            f"'{model.path}' makes latents of {_shape(ours.latent)}; train the {name} on the model's first stage"
        )
    if ours.first_stage["hash"] != theirs.first_stage["hash"]:
        raise InputError(
            f"guidance.checkpoint: the {name} '{guide.path}' was trained on the first stage "
            f"{theirs.first_stage['hash'][:12]}, the model '{model.path}' on {ours.first_stage['hash'][:12]}; "
            f"train the {name} with first_stage.checkpoint={ours.first_stage['path']}"
        )
    if any(ours.first_stage.get(key) != theirs.first_stage.get(key) for key in ("mean", "std")):
        raise InputError(
            f"guidance.checkpoint: the {name} '{guide.path}' was trained on latents of the same first stage scaled "
            f"otherwise than those of '{model.path}'; train the {name} with the same first_stage.scale and shift"
        )


def check_same_path(name: str, guide: Checkpoint, theirs: Path, ours: Path) -> None:
    """Raises InputError where alpha or sigma differ anywhere on a grid of t, by more than rounding."""
    t = torch.linspace(0, 1, POINTS, dtype=torch.float64, device="cpu")
    pairs = zip(theirs.alpha_sigma(t), ours.alpha_sigma(t))
    if not all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in pairs):
        raise InputError(
            f"guidance.checkpoint: the {name} '{guide.path}' was trained on the path {type(theirs).__name__}, the "
            f"model on {type(ours).__name__}, with another alpha or sigma; train the {name} with the model's "
            "diffusion.path"
        )


def _shape(latent: dict) -> str:
    return f"{latent['channels']} channels at 1/{latent['factor']}"


def _about(origin: Checkpoint) -> dict[str, object]:
    return {"checkpoint": str(origin.path), "digest": origin.manifest.digest}

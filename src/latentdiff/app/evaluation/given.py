"""What is evaluated where it is no checkpoint: images made elsewhere, or a diffusers pipeline."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from latentdiff.app.evaluation.diffusers_pipeline import DiffusersPipeline
from latentdiff.app.evaluation.subject import Subject
from latentdiff.app.ranks import Ranks
from latentdiff.config.errors import InputError
from latentdiff.evaluation.given_images import GivenImages, image_set
from latentdiff.evaluation.prompts import PromptFile

ONLY_OF_CHECKPOINTS = ("bound", "first_stage.checkpoint")
"""Settings that say nothing of images made elsewhere."""


def images_subject(cfg: DictConfig, ranks: Ranks) -> Subject:
    """The images that ``cfg.images`` names, with ``cfg.prompts`` as their captions where it is given.

    The conditions are those of ``GivenImages.samples``. Raises InputError for images or settings that do not fit.
    """
    _refuse(cfg, (*ONLY_OF_CHECKPOINTS, "sampler.steps", "guidance.scale"), "images made elsewhere")
    _refuse_chosen(cfg, "images made elsewhere")
    prompts = None if cfg.prompts is None else PromptFile(cfg.prompts)
    images = image_set(cfg.images, lossy=cfg.lossy)
    given = GivenImages(images, count=cfg.num_images, seed=cfg.seed, device=ranks.device, prompts=prompts)
    return Subject(
        generate=given,
        identity=images.identity(),
        name=cfg.images,
        data=cfg.data,
        config=OmegaConf.create({}),
        samples=given.samples,
        given=images.size,
        container=images.container,
        reads_captions=prompts is not None,
    )


def pipeline_subject(cfg: DictConfig, ranks: Ranks) -> Subject:
    """The diffusers pipeline in the folder ``cfg.pipeline``, with captions of the data or of ``cfg.prompts``.

    Its scheduler and guidance are its own, with ``cfg.sampler.steps`` and ``cfg.guidance.scale`` where they are given;
    its images have the data's size, or where there are no data the pipeline's own.
    """
    what = "a pipeline of diffusers"
    _refuse(cfg, ONLY_OF_CHECKPOINTS, what)
    _refuse_chosen(cfg, what)
    if cfg.data is None and cfg.prompts is None:
        raise InputError("pipeline: it needs captions; give prompts=FILE, or data=... that have some")
    made = DiffusersPipeline(
        cfg.pipeline,
        device=ranks.device,
        precision=ranks.precision,
        steps=cfg.sampler.steps,
        scale=cfg.guidance.scale,
        size=None if cfg.data is None else cfg.data.size,
    )
    return Subject(
        generate=made,
        identity={"pipeline": cfg.pipeline, "sha256": ranks.broadcast(made.sha256() if ranks.first else None)},
        name=cfg.pipeline,
        data=cfg.data,
        config=OmegaConf.create({}),
        samples=None if cfg.prompts is None else PromptFile(cfg.prompts),
        given=made.size,
        reads_captions=True,
    )


def _refuse(cfg: DictConfig, keys: tuple[str, ...], what: str) -> None:
    for key in keys:
        if OmegaConf.select(cfg, key):
            raise InputError(f"{key}: it is for checkpoints, not for {what}; leave it out")


def _refuse_chosen(cfg: DictConfig, what: str) -> None:
    """A sampler or a guidance that is whole, not merely a value of the checkpoint's."""
    for group, marker in (("sampler", "solver"), ("guidance", "_target_")):
        if marker in cfg[group]:
            raise InputError(f"{group}: one of latentdiff's cannot be put into {what}; leave it out")

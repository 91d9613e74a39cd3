"""What train.py refuses before any work."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from latentdiff.app.build import world_size
from latentdiff.app.generate import check_training_guidance
from latentdiff.checkpoint.foreign.backbones import load_backbone_weights
from latentdiff.config import allowlist
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.data.buckets import checked_sizes
from latentdiff.diffusion.timesteps import DiscreteUniform
from latentdiff.training.compilation import compile_blocks
from latentdiff.training.diffusion_module import check_offset_noise
from latentdiff.training.parts import check_micro_batch
from latentdiff.types import Conditioning

POSITIVE = ("max_batches", "global_batch", "validate_every", "data.size")


def kind_of(cfg: DictConfig) -> str:
    """What the task trains, a key of ``store.KINDS``."""
    return allowlist.resolve(cfg.task._target_).kind


def check_numbers(cfg: DictConfig) -> None:
    """Counts are at least 1, every process gets the same share of a batch, and a limit of time is one."""
    for key in POSITIVE:
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{key}: expected a whole number of at least 1, got {value!r}")
    if (limit := cfg.trainer.get("max_time")) is not None and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(limit)):
        raise InputError(f"trainer.max_time: expected DD:HH:MM:SS, 00:12:00:00 for twelve hours, got {limit!r}")
    processes = world_size(cfg)
    if cfg.global_batch % processes:
        near = max(processes, round(cfg.global_batch / processes) * processes)
        raise InputError(
            f"global_batch: {cfg.global_batch} cannot be split evenly over {processes} processes; {near} can"
        )


def check_latents(cfg: DictConfig, latent: dict[str, int]) -> None:
    """The image size fits the autoencoder and the backbone; puts the shape of the latents into the configuration."""
    factor, by = latent["factor"], "the autoencoder's factor"
    if cfg.first_stage is not None:
        cfg.latent.channels, cfg.latent.factor = latent["channels"], latent["factor"]
    if cfg.backbone is not None:
        with torch.device("meta"):
            backbone = build(cfg.backbone)
        name = "backbone" if kind_of(cfg) == "diffusion" else kind_of(cfg)
        spatial = (cfg.get("conditioner") or {}).get("spatial", 0)
        below, given = getattr(backbone, "factor", 1), latent["channels"] + spatial
        if (reads := getattr(backbone, "in_channels", given)) != given:
            raise InputError(
                f"{name}.in_channels: the {name} reads {reads} channels, the first stage's latents have "
                f"{latent['channels']} and the spatial condition {spatial}; leave it at its default, which is their "
                "sum, or name another first stage"
            )
        factor, by = factor * below, f"{factor} (the autoencoder's factor) x {below} (the {name}'s)"
    size = cfg.data.size
    if size % factor:
        near = max(factor, round(size / factor) * factor)
        raise InputError(f"data.size: {size} is not divisible by {by} = {factor}; {near} is")
    for height, width in bucket_sizes(cfg):
        if height % factor or width % factor:
            raise InputError(f"data.buckets: {height}x{width} is not divisible by {by} = {factor}")


def bucket_sizes(cfg: DictConfig) -> list[tuple[int, int]]:
    """(height, width) of the training images that are no squares of ``data.size``."""
    node = cfg.data.get("buckets")
    return [] if node is None else checked_sizes(build(node))


def check_optimizers(cfg: DictConfig) -> None:
    """The optimisers take their settings: torch's annotations say little of what they accept."""
    for key in ("optim.optimizer", "adversarial.optimizer"):
        node = OmegaConf.select(cfg, key)
        if node is not None:
            if key == "adversarial.optimizer" and node._target_.endswith(".Muon") and cfg.adversarial.discriminator:
                raise InputError(
                    "adversarial.optimizer: expected another optimiser than Muon, with which the discriminator tells "
                    "every image apart within 100 batches; choose optim=adamw, adversarial=patch_tiny, or name one: "
                    "adversarial.optimizer._target_=torch.optim.AdamW"
                )
            try:
                build(node)([("weight", torch.nn.Parameter(torch.zeros(1)))])
            except (ValueError, TypeError, RuntimeError) as error:
                settings = ", ".join(f"{k}={v!r}" for k, v in node.items() if not k.startswith("_"))
                raise InputError(f"{key}: {node._target_} refuses {settings} ({error})") from error


def check_task(cfg: DictConfig) -> None:
    """Numbers and choices of the task that its constructor would refuse after the first stage was trained."""
    check_micro_batch(cfg.task.get("micro_batch"))
    check_offset_noise(cfg.task.get("offset_noise", 0.0))
    if (clip := cfg.task.get("gradient_clip", 1.0)) <= 0:
        raise InputError(f"task.gradient_clip: expected a norm above 0, got {clip}")
    if not 0 <= (decay := cfg.task.get("ema_decay", 0.0)) < 1:
        raise InputError(f"task.ema_decay: expected at least 0 and below 1, got {decay}")
    if cfg.task.get("power_ema") is not None:
        build(cfg.task.power_ema)(torch.nn.Linear(1, 1))
    if cfg.init_backbone is not None and kind_of(cfg) != "diffusion":
        raise InputError(
            "init_backbone: it is for a denoiser's backbone, which this task does not train; leave it null"
        )


def check_backbone(cfg: DictConfig, *, resumed: bool) -> None:
    """The backbone reads what the conditioner gives, can be compiled as asked, and fits ``init_backbone``, which a
    ``resumed`` run does not look at. To be called when the latents' shape is in the configuration."""
    with torch.device("meta"):
        backbone = build(cfg.backbone)
    width = cfg.conditioner.get("width")
    if hasattr(backbone, "context_dim") and backbone.context_dim != width:
        raise InputError(
            f"backbone.context_dim: the backbone reads tokens of width {backbone.context_dim}, the conditioner gives "
            f"width {width}; leave it at ${{conditioner.width}}, or choose another conditioner"
        )
    rows = cfg.conditioner.get("rows")
    if getattr(backbone, "num_classes", rows) != rows:
        raise InputError(
            f"backbone.num_classes: the backbone has {backbone.num_classes} rows, the conditioner picks from {rows}; "
            "leave it at its default"
        )
    compile_blocks(backbone, cfg.task.get("compile", "none"))
    for height, width in [(cfg.data.size, cfg.data.size), *bucket_sizes(cfg)]:
        _check_shapes(cfg, backbone, height // cfg.latent.factor, width // cfg.latent.factor)
    if cfg.init_backbone is None or resumed:
        return
    if not Path(cfg.init_backbone).exists():
        raise InputError(
            f"init_backbone: '{cfg.init_backbone}' does not exist; name a run or checkpoint directory of stage two, "
            "or another program's UNet"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*meta parameter.*no-op")
            load_backbone_weights(backbone, cfg.init_backbone)  # names and shapes; on the meta device nothing is kept
    except InputError as error:
        raise InputError(f"init_backbone: {error}") from error


def _check_shapes(cfg: DictConfig, backbone: torch.nn.Module, height: int, width: int) -> None:
    """On the meta device, where nothing is computed: what the conditioner gives goes in, a latent comes out."""
    given = {name: cfg.conditioner.get(name) for name in ("width", "vector", "spatial", "rows")}
    with torch.device("meta"):
        x = torch.empty(1, cfg.latent.channels, height, width)
        cond = Conditioning(
            tokens=torch.empty(1, 2, given["width"]) if given["width"] else None,
            vector=torch.empty(1, given["vector"]) if given["vector"] else None,
            spatial=torch.empty(1, given["spatial"], height, width) if given["spatial"] else None,
            label=torch.empty(1, dtype=torch.int64) if given["rows"] else None,
        )
        try:
            shape = backbone(x, torch.empty(1), cond).shape
        except InputError as error:
            raise InputError(f"backbone: {error}") from error
    if shape != x.shape:
        raise InputError(
            f"backbone: expected an output of the latent's shape {tuple(x.shape[1:])}, it has {tuple(shape[1:])}; "
            "leave backbone.out_channels at ${latent.channels}"
        )


def check_loss(cfg: DictConfig) -> None:
    """The law of t and the weighting take their settings, and a law for a table knows the path's."""
    try:
        path = build(cfg.diffusion.path)
        if kind_of(cfg) == "classifier":
            law = build(cfg.task.timesteps)
            law(torch.tensor([0.5]))
            return
        loss, parameterization = build(cfg.task.loss), build(cfg.diffusion.parameterization)
        t = loss.sample_t(torch.tensor([0.5]), 0.9, 0)
        loss.weighting(path, parameterization, t)
        law = loss.timesteps
    except (InputError, TypeError) as error:
        raise InputError(f"diffusion: {error}") from error
    if isinstance(law, DiscreteUniform) and law.steps != path.steps:
        raise InputError(
            f"diffusion.timesteps.steps: expected the length of the path's table, {path.steps}, got {law.steps}; set "
            "diffusion.path.steps and diffusion.timesteps.steps alike"
        )


def check_sampling(cfg: DictConfig) -> None:
    """Path and parameterization go together, the sampler runs on the path, guidance fits the conditioner."""
    node = OmegaConf.to_container(cfg.task.denoiser, resolve=True)
    try:
        denoiser = build({**node, "backbone": {"_target_": "torch.nn.Identity"}})
    except InputError as error:
        raise InputError(f"diffusion: {error}") from error
    if not isinstance(cfg.sampler.steps, int) or cfg.sampler.steps < 1:
        raise InputError(f"sampler.steps: expected a whole number of at least 1, got {cfg.sampler.steps!r}")
    x = torch.ones(1, 1, 1, 1)
    try:  # the whole way, for a network that always answers 0
        times = build(cfg.sampler.grid)(denoiser.path, cfg.sampler.steps, denoiser.t_max)
        solver = build(cfg.sampler.solver)
        x = solver(lambda x, t: torch.zeros_like(x), denoiser.path, x, times, lambda step: torch.zeros_like(x))
    except (InputError, ValueError) as error:
        raise InputError(f"sampler: {error}") from error
    if not bool(torch.isfinite(x).all()):
        names = f"{type(solver).__name__} with {type(denoiser.path).__name__}"
        raise InputError(f"sampler: {names} does not end with finite numbers on these times; choose another")
    check_training_guidance(cfg)

"""What train.py refuses before any work."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from omegaconf import DictConfig, OmegaConf

from latentdiff.app.run import preflight
from latentdiff.app.run.preflight import (
    check_backbone,
    check_latents,
    check_loss,
    check_numbers,
    check_sampling,
    check_task,
)
from latentdiff.config.errors import InputError


def config(in_channels: object = "${latent.channels}", size: int = 16) -> DictConfig:
    backbone = {
        "_target_": "latentdiff.models.backbones.unet.UNet",
        "in_channels": in_channels,
        "out_channels": "${latent.channels}",
        "channels": 8,
        "channel_multipliers": [1, 1],
        "num_res_blocks": 1,
        "attention_factors": [],
        "context_dim": 4,
        "heads": 2,
        "norm_groups": 2,
    }
    latent = {"channels": None, "factor": None}
    task = {"_target_": "latentdiff.training.diffusion_module.DiffusionModule"}
    parts = {"first_stage": {}, "latent": latent, "backbone": backbone, "data": {"size": size}, "task": task}
    return OmegaConf.create(parts)


@pytest.mark.parametrize("limit", [10, "10", "an-hour", "1:00", "00:00:10", "0:0:0:10", -1])
def test_a_time_that_is_none_is_refused(limit: object) -> None:
    cfg = config()
    counts = {"max_batches": 1, "global_batch": 2, "validate_every": 1, "trainer": {"devices": 1, "max_time": None}}
    cfg = OmegaConf.merge(cfg, counts)
    for good in (None, "00:00:00:10", "120:12:00:00"):
        cfg.trainer.max_time = good
        check_numbers(cfg)
    cfg.trainer.max_time = limit
    with pytest.raises(InputError, match=r"trainer\.max_time: expected DD:HH:MM:SS, .* got "):
        check_numbers(cfg)


def test_the_shape_of_the_latents_goes_into_the_configuration() -> None:
    cfg = config()
    check_latents(cfg, {"channels": 6, "factor": 4})
    assert (cfg.latent.channels, cfg.latent.factor, cfg.backbone.in_channels) == (6, 4, 6)


def test_a_backbone_that_reads_fewer_channels_than_the_latents_have_is_refused() -> None:
    with pytest.raises(InputError, match=r"backbone\.in_channels: the backbone reads 3 channels, .* latents have 4"):
        check_latents(config(in_channels=3), {"channels": 4, "factor": 4})


def test_an_image_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.size: 20 is not divisible by 4 .* x 2 .* = 8; 16 is"):
        check_latents(config(size=20), {"channels": 4, "factor": 4})


def test_buckets_that_do_not_divide_are_refused() -> None:
    cfg = config(size=16)
    for buckets, faulty in (([[16, 24], [24, 16]], None), ([[16, 24], [20, 16]], "20x16"), ([[16, 28]], "16x28")):
        cfg.data.buckets = buckets
        with pytest.raises(InputError, match=rf"data\.buckets: {faulty} is not") if faulty else nullcontext():
            check_latents(cfg, {"channels": 4, "factor": 4})
    cfg.data.buckets = {"_target_": "latentdiff.data.buckets.AspectBuckets", "area": 400, "multiple": 4}
    with pytest.raises(InputError, match=r"data\.buckets: \d+x\d+ is not divisible by 4 .* x 2 .* = 8"):
        check_latents(cfg, {"channels": 4, "factor": 4})


def test_a_task_without_a_backbone_is_held_against_the_autoencoder_alone() -> None:
    cfg = config(size=20)
    cfg.backbone = None
    check_latents(cfg, {"channels": 4, "factor": 4})
    with pytest.raises(InputError, match=r"data\.size: 20 is not divisible by the autoencoder's factor = 8"):
        check_latents(cfg, {"channels": 4, "factor": 8})


def diffusion_config(changes: dict[str, object] | None = None) -> DictConfig:
    """Of stage two, with the latents' shape filled in."""
    parts = {
        "path": {"_target_": "latentdiff.diffusion.path.RectifiedFlow"},
        "parameterization": {"_target_": "latentdiff.diffusion.parameterization.Velocity"},
    }
    module = {"_target_": "latentdiff.conditioning.text_transformer.TextTransformerConditioner", "drop": 0.1}
    own = {
        "task": {
            "_target_": "latentdiff.training.diffusion_module.DiffusionModule",
            "denoiser": {"_target_": "latentdiff.diffusion.denoiser.Denoiser", "backbone": "${backbone}", **parts},
        },
        "sampler": {
            "solver": {"_target_": "latentdiff.diffusion.samplers.euler.Euler"},
            "grid": {"_target_": "latentdiff.diffusion.grids.Uniform"},
            "steps": 3,
        },
        "guidance": {"_target_": "latentdiff.diffusion.guidance.ClassifierFree", "scale": 3.0},
        "conditioner": {"width": 4, "module": module},
        "init_backbone": None,
        "latent": {"channels": 4, "factor": 8},
    }
    cfg = OmegaConf.merge(config(), own)
    for key, value in (changes or {}).items():
        OmegaConf.update(cfg, key, value, force_add=True)
    return cfg


def test_a_sound_configuration_passes() -> None:
    cfg = diffusion_config()
    check_task(cfg)
    check_backbone(cfg, resumed=False)
    check_sampling(cfg)
    assert preflight.kind_of(cfg) == "diffusion"


POWER = {"_target_": "latentdiff.training.power_ema.PowerEma", "_partial_": True}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("task.micro_batch", 0, r"task\.micro_batch: .* at least 1"),
        ("task.offset_noise", -0.5, r"task\.offset_noise: expected a strength of at least 0"),
        ("task.gradient_clip", -1.0, r"task\.gradient_clip: expected a norm above 0, got -1"),
        ("task.ema_decay", 1.5, r"task\.ema_decay: expected at least 0 and below 1, got 1\.5"),
        ("task.power_ema", {**POWER, "lengths": [0.1]}, r"power_ema\.lengths: expected at least two"),
        ("task.power_ema", {**POWER, "lengths": [0.1, 0.4]}, r"EMA length: expected one in \(0, 0\.2887\)"),
    ],
)
def test_faulty_tasks_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_task(diffusion_config({key: value}))


def test_power_averages_of_a_sound_configuration_pass() -> None:
    check_task(diffusion_config({"task.power_ema": POWER}))


def test_weights_for_a_backbone_need_a_task_that_has_one() -> None:
    cfg = diffusion_config({"init_backbone": "somewhere"})
    cfg.task = {"_target_": "latentdiff.training.autoencoder_module.AutoencoderModule"}
    with pytest.raises(InputError, match="init_backbone: it is for a denoiser's backbone"):
        check_task(cfg)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("conditioner.width", 5, r"backbone\.context_dim: .* tokens of width 4, the conditioner gives width 5"),
        ("backbone.num_classes", 10, "backbone.num_classes: the backbone has 10 rows, the conditioner picks from None"),
        ("backbone.vector_dim", 8, "backbone: .*vector"),
        ("backbone.out_channels", 3, r"backbone: expected an output of the latent's shape \(4, 2, 2\).* \(3, 2, 2\)"),
        ("task.compile", "all", r"task\.compile: expected none or blocks, got 'all'"),
        ("init_backbone", "/no/such/file.ckpt", r"init_backbone: '/no/such/file\.ckpt' does not exist"),
        ("init_backbone", "/", r"init_backbone: no checkpoint found under '/'"),
    ],
)
def test_backbones_that_do_not_fit_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_backbone(diffusion_config({key: value}), resumed=False)
    if key == "init_backbone":
        check_backbone(diffusion_config({key: value}), resumed=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler.steps": 0}, r"sampler\.steps: expected a whole number of at least 1, got 0"),
        ({"sampler.steps": 2.5}, r"sampler\.steps: expected a whole number of at least 1, got 2\.5"),
        (
            {"sampler.grid": {"_target_": "latentdiff.diffusion.grids.Shifted", "shift": -1.0}},
            r"sampler: .*Shifted: shift must be positive",
        ),
        (
            {"sampler.grid": {"_target_": "latentdiff.diffusion.grids.Leading"}},
            "sampler: Leading picks entries of a discrete path",
        ),
        (
            {"task.denoiser.path": {"_target_": "latentdiff.diffusion.path.ScaledLinearDDPM"}},
            "diffusion: Velocity on ScaledLinearDDPM",
        ),
        ({"conditioner.module.drop": 0}, "guidance: ClassifierFree compares with the null condition"),
        (
            {"guidance": {"_target_": "latentdiff.checkpoint.guides.CheckpointAutoguidance", "checkpoint": "x"}},
            "guidance: CheckpointAutoguidance reads a second checkpoint",
        ),
    ],
)
def test_sampling_that_cannot_work_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_sampling(diffusion_config(changes))


LAWS = "latentdiff.diffusion.timesteps."
NORMAL = {"_target_": LAWS + "LogitNormal"}
CURRICULUM = {"_target_": LAWS + "Curriculum", "first": NORMAL, "then": NORMAL, "batches": 100}
UNIT = {"_target_": "latentdiff.diffusion.weighting.Unit"}


def loss_config(timesteps: dict, weighting: dict = UNIT, path: str = "ScaledLinearDDPM") -> DictConfig:
    diffusion = {
        "path": {"_target_": f"latentdiff.diffusion.path.{path}"},
        "parameterization": {"_target_": "latentdiff.diffusion.parameterization.V"},
    }
    loss = {"_target_": "latentdiff.diffusion.loss.DiffusionLoss", "timesteps": timesteps, "weighting": weighting}
    return diffusion_config({"diffusion": diffusion, "task.loss": loss})


def test_a_sound_loss_passes() -> None:
    check_loss(loss_config({"_target_": LAWS + "DiscreteUniform", "steps": 1000}))
    check_loss(loss_config(CURRICULUM))


@pytest.mark.parametrize(
    ("law", "weighting", "message"),
    [
        ({**NORMAL, "std": 0.0}, UNIT, "diffusion: .*std must be positive"),
        ({**CURRICULUM, "batches": -1}, UNIT, "diffusion: .*batches must be at least 0"),
        ({**CURRICULUM, "then": CURRICULUM}, UNIT, r"diffusion: .*Curriculum\.then: expected a law of t"),
        ({"_target_": LAWS + "Shifted", "law": CURRICULUM, "shift": 2.0}, UNIT, r"diffusion: .*Shifted\.law"),
        (NORMAL, {"_target_": "latentdiff.diffusion.weighting.MinSNR", "gamma": -1.0}, "diffusion: .*gamma"),
        ({"_target_": LAWS + "DiscreteUniform", "steps": 100}, UNIT, r"diffusion\.timesteps\.steps: .* 1000, got 100"),
    ],
)
def test_losses_that_cannot_work_are_refused(law: dict, weighting: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_loss(loss_config(law, weighting))


class Diverging:
    """Stands for a sampler that divides by alpha."""

    def __call__(self, denoise, path, x, times, noise_at, on_step=None):
        return denoise(x, times[:1]) + 1 / path.alpha_sigma(times[:1])[0]


def test_a_sampler_that_ends_without_finite_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = preflight.build
    solver = diffusion_config().sampler.solver
    monkeypatch.setattr(preflight, "build", lambda node: Diverging() if node == solver else plain(node))
    with pytest.raises(InputError, match="sampler: Diverging with RectifiedFlow does not end with finite numbers"):
        check_sampling(diffusion_config())

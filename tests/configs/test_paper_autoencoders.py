"""The published first stages (arXiv:2112.10752, table 8): their sizes, and the experiments that train them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from latentdiff.app import schema
from latentdiff.config.compose import compose
from latentdiff.config.instantiate import build
from latentdiff.config.validate import validate

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

PUBLISHED = {
    "kl_f2": (13_314_465, (2, 128, 128)),
    "kl_f4": (55_312_063, (3, 64, 64)),
    "kl_f8": (83_653_863, (4, 32, 32)),
    "kl_f16": (69_610_963, (16, 16, 16)),
    "kl_f16_c8": (69_499_371, (8, 16, 16)),
    "kl_f32": (103_880_131, (64, 8, 8)),
    "kl_f32_c16": (103_197_139, (16, 8, 8)),
    "vq_f4": (55_322_782, (3, 64, 64)),
    "vq_f4_noattn": (53_219_486, (3, 64, 64)),
    "vq_f8": (67_717_295, (4, 32, 32)),
    "vq_f16": (69_593_371, (8, 16, 16)),
}
"""Parameters, codebook included, and the latent of a 256 px image."""

EXPERIMENTS = {
    "ae_kl_f4": (24, 176_991, 1e-6, 0.5, 50_001, 3),
    "ae_kl_f8": (24, 246_803, 1e-6, 0.5, 50_001, 3),
    "ae_kl_f16": (24, 442_998, 1e-6, 0.5, 50_001, 3),
    "ae_kl_f32": (24, 406_763, 1e-6, 0.5, 50_001, 3),
    "ae_vq_f4": (8, 533_066, 0.25, 0.75, 0, 3),
    "ae_vq_f4_noattn": (8, 658_131, 0.25, 0.75, 11, 3),
    "ae_vq_f8": (10, 971_043, 0.25, 0.6, 1, 2),
    "ae_vq_f16": (14, 1_101_166, 0.25, 0.75, 250_001, 2),
}
"""Images per batch, batches, weight of the bottleneck's and of the adversarial term, its first batch, its layers."""


def composed(*overrides: str) -> DictConfig:
    schema.register()
    cfg, faults = compose(CONFIGS, "train", list(overrides))
    about = schema.ROOTS["train"]
    faults = [*faults, *validate(cfg, injected=about.injected, runtime=about.runtime)]
    assert [str(fault) for fault in faults] == []
    cfg.run_dir = "run"
    return cfg


def on_meta(node: DictConfig) -> nn.Module:
    with torch.device("meta"):
        return build(node)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def options(group: str, pattern: str) -> set[str]:
    return {path.stem for path in (CONFIGS / group).glob(pattern)}


def test_every_published_one_is_known() -> None:
    assert {name for name in options("autoencoder", "*.yaml") if "tiny" not in name} == set(PUBLISHED)
    assert options("experiment/paper", "ae_*.yaml") == set(EXPERIMENTS)


@pytest.fixture(scope="module")
def node() -> dict[str, DictConfig]:
    """The autoencoder's part of the configuration, by option."""
    return {name: composed("experiment=ae_kl", f"autoencoder={name}").autoencoder for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(node: dict[str, DictConfig], name: str) -> None:
    model = on_meta(node[name])
    assert (parameters(model), model.latent_shape(256, 256)) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_of_diffusers(node: dict[str, DictConfig], name: str) -> None:
    """An independent construction from the published lists of widths and of resolutions with attention."""
    diffusers = pytest.importorskip("diffusers")
    plan = {  # channel multipliers, resolutions at 256 px with attention
        "f2": ((1, 2), ()),
        "f4": ((1, 2, 4), ()),
        "kl_f8": ((1, 2, 4, 4), ()),
        "vq_f8": ((1, 2, 2, 4), (32,)),
        "f16": ((1, 1, 2, 2, 4), (16,)),
        "f32": ((1, 1, 2, 2, 4, 4), (16, 8)),
    }
    multipliers, resolutions = plan.get("_".join(name.split("_")[:2])) or plan[name.split("_")[1]]
    attends = [256 // 2**i in resolutions for i in range(len(multipliers))]
    sizes = {
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends],
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)],
        "block_out_channels": [128 * m for m in multipliers],
        "layers_per_block": 2,
        "latent_channels": PUBLISHED[name][1][0],
        "mid_block_add_attention": "noattn" not in name,
    }
    with torch.device("meta"):
        if name.startswith("kl"):
            peer = diffusers.AutoencoderKL(**sizes)
        else:
            peer = diffusers.VQModel(**sizes, num_vq_embeddings=16384 if name in ("vq_f8", "vq_f16") else 8192)
    assert parameters(on_meta(node[name])) == parameters(peer)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_have_the_published_settings(name: str) -> None:
    cfg = composed(f"experiment=paper/{name}", "data.train=shards")
    batch, batches, weight, adversarial, start, layers = EXPERIMENTS[name]
    assert (cfg.experiment, cfg.data.size) == (f"paper/{name}", 256)
    assert (cfg.global_batch, cfg.max_batches) == (batch, batches)
    assert cfg.optim.lr == pytest.approx(4.5e-6 * batch)
    assert list(cfg.optim.optimizer.betas) == [0.5, 0.9]
    assert (cfg.task.bottleneck_weight, cfg.adversarial.schedule.weight) == (weight, adversarial)
    assert (cfg.adversarial.schedule.start, cfg.adversarial.discriminator.layers) == (start, layers)
    assert (cfg.reconstruction.l1, cfg.reconstruction.l2, cfg.reconstruction.perceptual_weight) == (1.0, 0.0, 1.0)
    assert cfg.autoencoder == composed("experiment=ae_kl", f"autoencoder={name.removeprefix('ae_')}").autoencoder


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_built_and_take_their_images(name: str) -> None:
    cfg = composed(f"experiment=paper/{name}", "data.train=shards")
    cfg.reconstruction.perceptual = None  # its weights would be downloaded
    module = on_meta(cfg.task)
    model, image = module.autoencoder, torch.empty(1, 3, 256, 256, device="meta")
    mean = model.encode(image).mean
    assert mean.shape[1:] == PUBLISHED[name.removeprefix("ae_")][1]
    assert module.discriminator(model.decode(mean)).shape[:2] == (1, 1)
    assert [optimizer.defaults["lr"] for optimizer in module.configure_optimizers()] == [cfg.optim.lr] * 2


@pytest.mark.parametrize(("name", "factor", "limit"), [("tiny_f4", 4, 700_000), ("tiny_f8", 8, 550_000)])
def test_tiny_ones_have_four_channels_and_stay_small(name: str, factor: int, limit: int) -> None:
    model = on_meta(composed("experiment=ae_kl", f"autoencoder={name}").autoencoder)
    assert (model.patch, model.factor, model.latent_channels) == (2, factor, 4)
    assert 0.8 * limit < parameters(model) < limit


def test_the_embedded_world_s_codebook_has_the_latents_of_its_kl_autoencoder() -> None:
    kl, vq = (on_meta(composed(f"experiment={name}").autoencoder) for name in ("ae_kl", "ae_vq"))
    assert kl.latent_shape(64, 64) == vq.latent_shape(64, 64) == (4, 16, 16)
    assert vq.bottleneck.entries == 1024

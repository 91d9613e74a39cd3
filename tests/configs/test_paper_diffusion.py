"""The published second stages: their settings and their sizes. ``test_debug`` runs two batches of each."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from latentdiff.app import schema
from latentdiff.config.compose import compose
from latentdiff.config.instantiate import build
from latentdiff.config.validate import validate
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.types import Batch

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

LDM, LDM_8, WIDE = (0.0015, 0.0195), (0.0015, 0.0155), (0.0015, 0.0205)
SD, LINEAR = (0.00085, 0.012), (1e-4, 0.02)
SETTINGS = {
    "ldm4_celebahq": (48, 410_000, 9.6e-5, "ae_vq_f4", LDM, 500, 0.0, 1.0, 0.0),
    "ldm4_ffhq": (42, 635_000, 8.4e-5, "ae_vq_f4", LDM, 200, 1.0, 1.0, 0.0),
    "ldm4_bedrooms": (48, 1_900_000, 9.6e-5, "ae_vq_f4", LDM, 200, 1.0, 1.0, 0.0),
    "ldm8_churches": (96, 500_000, 5e-5, "ae_kl_f8", LDM_8, 200, 0.0, 1.0, 0.0),
    "ldm4_imagenet": (1200, 178_000, 1e-4, "ae_vq_f4", LDM, 250, 0.0, 1.5, 0.1),
    "ldm8_imagenet": (64, 4_800_000, 6.4e-5, "ae_vq_f8", LDM, 200, 1.0, 1.0, 0.0),
    "ldm8_txt2img": (680, 390_000, 1e-4, "ae_kl_f8", SD, 250, 0.0, 1.5, 0.1),
    "sd1": (2048, 225_000, 1e-4, "ae_kl_f8", SD, 50, None, 7.5, 0.1),
    "sd2": (2048, 850_000, 1e-4, "ae_kl_f8", SD, 50, 0.0, 7.5, 0.1),
    "ldm4_inpaint": (128, 360_000, 1e-6, "ae_vq_f4_noattn", WIDE, 50, 0.0, 1.0, 0.0),
    "ldm4_superres": (64, 860_000, 6.4e-5, "ae_vq_f4", LDM_8, 100, 0.0, 1.0, 0.0),
    "ldm4_semantic": (48, 360_000, 4.8e-5, "ae_vq_f4", WIDE, 200, 0.0, 1.0, 0.0),
    "dit_xl_2": (256, 7_000_000, 1e-4, "ae_kl_f8", LINEAR, 250, None, 1.5, 0.1),
    "dit_txt2img": (1024, 400_000, 1e-4, "ae_kl_f8", None, 50, None, 5.0, 0.1),
}
"""Images per batch, batches, learning rate, first stage, ends of the betas, sampling steps, eta, guidance, dropping."""

SIZES = {
    "ldm4_celebahq": (274_056_163, 274, 3),
    "ldm4_ffhq": (274_056_163, 274, 3),
    "ldm4_bedrooms": (274_056_163, 274, 3),
    "ldm8_churches": (294_966_916, 294, 4),
    "ldm4_imagenet": (400_920_579, 400, 3),
    "ldm8_imagenet": (394_984_196, 395, 4),
    "ldm8_txt2img": (872_300_484, 872.3, 4),
    "sd1": (859_520_964, 859.52, 4),
    "sd2": (865_910_724, 865.91, 4),
    "ldm4_inpaint": (387_245_827, 387, 7),
    "ldm4_superres": (113_622_563, None, 6),
    "ldm4_semantic": (215_229_315, 215, 6),
    "dit_xl_2": (674_816_272, 675, 4),
    "dit_txt2img": (814_221_328, None, 4),
}
"""The backbone's parameters, those published in millions, and the channels that it reads.

Published: arXiv:2112.10752, tables 10, 12 and 15, section 4.5 (inpainting, "387M"); LDM's logs for text;
arXiv:2212.09748, table 1. Table 4 says 169 M of super-resolution; here the released model is counted (see its YAML).
"""


@cache
def _composed(*overrides: str) -> DictConfig:
    schema.register()
    cfg, faults = compose(CONFIGS, "train", [*overrides, "data.train=shards"])
    about = schema.ROOTS["train"]
    faults = [*faults, *validate(cfg, injected=about.injected, runtime=about.runtime)]
    assert [str(fault) for fault in faults] == []
    cfg.run_dir = "run"
    return cfg


def composed(*overrides: str) -> DictConfig:
    """Of train.py, without fault."""
    return copy.deepcopy(_composed(*overrides))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def options(group: str) -> set[str]:
    return {path.stem for path in (CONFIGS / group).glob("*.yaml")}


def test_every_published_one_is_known() -> None:
    names = {name for name in options("experiment/paper") if not name.startswith("ae_")}
    assert names == set(SETTINGS) == set(SIZES)


@pytest.mark.parametrize("name", SETTINGS)
def test_experiments_have_the_published_settings(name: str) -> None:
    cfg = composed(f"experiment=paper/{name}")
    batch, batches, rate, first, betas, steps, eta, scale, drop = SETTINGS[name]
    assert (cfg.experiment, cfg.first_stage.experiment) == (f"paper/{name}", f"paper/{first}")
    assert (cfg.global_batch, cfg.max_batches) == (batch, batches)
    assert cfg.optim.lr == pytest.approx(rate)
    assert cfg.optim.optimizer._target_ == "torch.optim.AdamW"
    is_ours, is_dit = name == "dit_txt2img", name.startswith("dit")
    assert list(cfg.optim.optimizer.betas) == [0.9, 0.95 if is_ours else 0.999]
    assert cfg.optim.optimizer.weight_decay == (0.0 if is_dit else 0.01)
    assert cfg.task.ema_decay == 0.9999
    path = build(cfg.diffusion.path)
    if betas is not None:
        t = torch.tensor([1 / 1000], dtype=torch.float64)
        assert 1 - path.alpha_sigma(t)[0].item() ** 2 == pytest.approx(betas[0])
        before, last = path.alpha_sigma(torch.tensor([0.999, 1.0], dtype=torch.float64))[0] ** 2
        assert 1 - (last / before).item() == pytest.approx(betas[1])
    assert (cfg.sampler.steps, cfg.sampler.solver.get("eta")) == (steps, eta)
    assert cfg.guidance.get("scale", 1.0) == scale
    assert cfg.conditioner.module.get("drop", 0.0) == drop


@pytest.fixture
def clip_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip's models are built from their configurations alone, on the meta device."""
    import open_clip

    from latentdiff.conditioning import open_clip_text

    def built(*, model: str, weights: str, option: str, model_config: str | None = None) -> torch.nn.Module:
        return open_clip.create_model(model, device="meta")

    monkeypatch.setattr(open_clip_text, "load_open_clip", built)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.usefixtures("clip_without_weights")
def test_experiments_are_built_with_the_published_sizes(name: str) -> None:
    """On the meta device, with the first stage that they would train."""
    cfg = composed(f"experiment=paper/{name}")
    first = composed(f"experiment={cfg.first_stage.experiment}")
    image = torch.empty(2, 3, cfg.data.size, cfg.data.size, dtype=torch.uint8, device="meta")
    with torch.device("meta"):
        autoencoder = build(first.autoencoder)
        channels = autoencoder.latent_channels
        cfg.latent.channels, cfg.latent.factor = channels, autoencoder.factor
        codec = LatentCodec(autoencoder=autoencoder, mean=torch.zeros(channels), std=torch.ones(channels))
        module = build(cfg.task, inject={"codec": codec})
        backbone = module.model["denoiser"].backbone
        cond = module.model["conditioner"](batch_of(image, cfg.conditioner), codec)
        latent = torch.empty(2, channels, *(side // codec.factor for side in image.shape[2:]))
        assert backbone(latent, torch.ones(2), cond).shape == latent.shape
    count, published, reads = SIZES[name]
    assert (parameters(backbone), backbone.in_channels) == (count, reads)
    assert published is None or count / 1e6 == pytest.approx(published, rel=0.005)


def batch_of(image: torch.Tensor, conditioner: DictConfig) -> Batch:
    """Two samples with everything that a conditioner can read."""
    size, device = image.shape[-1], image.device
    factor = OmegaConf.select(conditioner, "conditions.low_res.factor") or 4
    return Batch(
        keys=["a", "b"],
        image=image,
        caption=["a red circle", ""],
        label=torch.empty(2, dtype=torch.int64, device=device),
        segmentation=torch.empty(2, size, size, dtype=torch.uint8, device=device),
        mask=torch.empty(2, 1, size, size, dtype=torch.uint8, device=device),
        low_res=torch.empty(2, 3, size // factor, size // factor, dtype=torch.uint8, device=device),
    )


UNETS = {  # channels read, widths, levels with attention, whether residual blocks halve and double
    "ldm4_inpaint": (7, (256, 512, 768, 1024), (False, True, True, True), True),
    "ldm4_superres": (6, (160, 320, 320, 640), (False, False, False, True), False),
    "ldm4_semantic": (6, (128, 512, 1024), (False, False, False), False),
}


@pytest.mark.parametrize("name", UNETS)
def test_diffusers_builds_those_that_read_images_with_as_many_parameters(name: str) -> None:
    """An independent construction; the number of heads does not change how many there are."""
    diffusers = pytest.importorskip("diffusers")
    reads, widths, attends, by_block = UNETS[name]
    with torch.device("meta"):
        peer = diffusers.UNet2DModel(
            in_channels=reads,
            out_channels=3,
            block_out_channels=widths,
            down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attends]
            if not by_block
            else ["AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends],
            up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)]
            if not by_block
            else ["AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)],
            downsample_type="resnet" if by_block else "conv",
            upsample_type="resnet" if by_block else "conv",
            layers_per_block=2,
            attention_head_dim=32,
        )
    assert parameters(peer) == SIZES[name][0]


@pytest.mark.parametrize(
    ("name", "model", "count"), [("sd1", "ViT-L-14", 123_650_305), ("sd2", "ViT-H-14", 354_032_641)]
)
def test_text_encoders_have_the_published_sizes(name: str, model: str, count: int, clip_without_weights: None) -> None:
    """123 M and 354 M with CLIP's projection and temperature, which make no tokens."""
    node = composed(f"experiment=paper/{name}").conditioner
    assert node.module.model.removesuffix("-quickgelu") == model
    with torch.device("meta"):
        text = build(node.module)
    assert (parameters(text), text.width) == (count, node.width)

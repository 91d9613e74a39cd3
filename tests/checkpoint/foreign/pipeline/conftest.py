"""Small pipelines of diffusers with random weights in the manner of Stable Diffusion 1 and 2, and how they sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from latentdiff.checkpoint.foreign.text import tokenizer
from latentdiff.checkpoint.models import DiffusionModel
from latentdiff.config.instantiate import build
from latentdiff.diffusion.noise import seeded_noise
from latentdiff.generation.pipeline import LatentPipeline
from latentdiff.types import Batch

PROMPTS = ["a photo of a red cube, on the table", "blue"]
SEEDS, STEPS, SCALE, SIDE = [1, 2], 10, 7.5, 16


@dataclass(frozen=True)
class Peer:
    """``folder``: where diffusers saved ``pipeline``."""

    version: int
    folder: Path
    pipeline: object


@pytest.fixture(scope="module")
def peers(tmp_path_factory) -> dict[int, Peer]:
    """One each in the manner of Stable Diffusion 1 (noise, QuickGELU, end tokens) and 2 (v, GELU, linear, token 0)."""
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    return {version: _peer(version, tmp_path_factory.mktemp(f"sd{version}")) for version in (1, 2)}


@pytest.fixture(params=[1, 2], ids=["SD 1", "SD 2"])
def peer(request, peers) -> Peer:
    return peers[request.param]


@pytest.fixture
def theirs() -> Callable[..., tuple[Tensor, Tensor]]:
    """``theirs(pipeline, scale)``: latents and images in [0, 1] of diffusers, from the noise that ``ours`` starts
    from."""

    def sample(pipeline, *, scale: float = SCALE) -> tuple[Tensor, Tensor]:
        noise = seeded_noise(SEEDS, "start", (4, SIDE // 2, SIDE // 2))
        settings = {"num_inference_steps": STEPS, "guidance_scale": scale, "height": SIDE, "width": SIDE}
        return tuple(pipeline(PROMPTS, latents=noise, output_type=kind, **settings).images for kind in ("latent", "pt"))

    return sample


@pytest.fixture
def ours() -> Callable[..., tuple[Tensor, Tensor]]:
    """``ours(model)``: the same of an imported model, with sampler, grid and guidance of its own configuration."""

    def sample(model: DiffusionModel) -> tuple[Tensor, Tensor]:
        made = LatentPipeline(
            denoiser=model.denoiser,
            conditioner=model.conditioner,
            codec=model.codec,
            sampler=build(model.config.sampler.solver),
            grid=build(model.config.sampler.grid),
            steps=STEPS,
            guidance=build(model.config.guidance),
            image_size=model.config.data.size,
        )
        latents = made.latents(Batch(keys=["0", "1"], caption=PROMPTS), SEEDS)
        return latents, model.codec.decode(latents) / 2 + 0.5

    return sample


def _peer(version: int, folder: Path) -> Peer:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(version)
    (folder / "words").mkdir()
    tokenizer.write(folder / "words", pad_with_end=version == 1, context_length=77)
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    activation = {1: "quick_gelu", 2: "gelu"}[version]
    text = CLIPTextModel(CLIPTextConfig(**sizes, vocab_size=49408, eos_token_id=49407, hidden_act=activation))
    unet = UNet2DConditionModel(
        sample_size=SIDE // 2,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2 if version == 1 else (2, 4),
        use_linear_projection=version == 2,
    )
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(block_out_channels=(32, 64), latent_channels=4, **kinds)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon" if version == 1 else "v_prediction",
    )
    pipeline = StableDiffusionPipeline(
        vae=_randomised(vae),
        text_encoder=_randomised(text),
        tokenizer=CLIPTokenizer.from_pretrained(str(folder / "words")),
        unet=_randomised(unet),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder / "pipeline")
    return Peer(version, folder / "pipeline", pipeline)


def _randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.03 * torch.randn(p.shape, generator=generator))
    return module.eval()

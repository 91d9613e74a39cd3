"""An unconditional model as diffusers' LDMPipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from latentdiff.app.export.work import export
from latentdiff.checkpoint import store
from latentdiff.checkpoint.models import load_diffusion
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.diffusion.noise import seeded_noise
from latentdiff.generation.pipeline import LatentPipeline
from latentdiff.types import Batch

SEEDS, STEPS = [1, 2], 10
HOME = "latentdiff."
AUTOENCODER = {
    "_target_": f"{HOME}models.autoencoder.autoencoder.Autoencoder",
    "bottleneck": {"_target_": f"{HOME}models.autoencoder.bottlenecks.kl.KL"},
    "channels": 32,
    "channel_multipliers": [1, 2],
    "num_res_blocks": 1,
    "latent_channels": 3,
    "quant_conv": False,
    "post_quant_conv": False,
}
VQ = {"_target_": f"{HOME}models.autoencoder.bottlenecks.vq.VQ", "entries": 8, "channels": 3}
DENOISER = {
    "_target_": f"{HOME}diffusion.denoiser.Denoiser",
    "backbone": {
        "_target_": f"{HOME}models.backbones.unet.UNet",
        "in_channels": 3,
        "out_channels": 3,
        "channels": 32,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "attention_factors": [2],
        "context_dim": None,
        "head_width": 16,
    },
    "path": {"_target_": f"{HOME}diffusion.path.ScaledLinearDDPM"},
    "parameterization": {"_target_": f"{HOME}diffusion.parameterization.V"},
}
GRID = {"_target_": f"{HOME}diffusion.grids.Trailing"}


def averaged(node: dict, prefix: str) -> dict[str, torch.Tensor]:
    """Random weights, those that start as zero too."""
    generator = torch.Generator().manual_seed(0)
    module = build(node)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return {prefix + name: value for name, value in module.state_dict().items()}


def run(folder: Path, **changes) -> Path:
    node, seen = AUTOENCODER | changes, {"batches_seen": 1, "images_seen": 2}
    store.save(
        folder / "first",
        kind="autoencoder",
        model={"latent_mean": torch.tensor([0.4, -0.3, 0.0]), "latent_std": torch.tensor([2.0, 0.5, 1.0])},
        ema=averaged(node, "ema.model."),
        config=OmegaConf.to_yaml(OmegaConf.create({"autoencoder": node, "data": {"size": 16}})),
        counters=seen,
    )
    conditioner = {"_target_": f"{HOME}conditioning.unconditional.Unconditional"}
    task = {"denoiser": DENOISER, "conditioner": conditioner}
    store.save(
        folder / "second",
        kind="diffusion",
        model={},
        ema=averaged(DENOISER["backbone"], "ema.model.denoiser.backbone."),
        config=OmegaConf.to_yaml(OmegaConf.create({"task": task, "data": {"size": 16}, "sampler": {"grid": GRID}})),
        counters=seen,
        first_stage={"path": str(folder / "first"), "hash": store.digest(folder / "first")},
        latent={"channels": 3, "factor": 2},
    )
    return folder / "second"


def our_images(path: Path) -> torch.Tensor:
    """In [0, 1]."""
    model = load_diffusion(path)
    made = LatentPipeline(
        denoiser=model.denoiser,
        conditioner=model.conditioner,
        codec=model.codec,
        sampler=build({"_target_": f"{HOME}diffusion.samplers.ddim.DDIM"}),
        grid=build(GRID),
        steps=STEPS,
        guidance=build({"_target_": f"{HOME}diffusion.guidance.Unguided"}),
        image_size=16,
    )
    return model.codec.decode(made.latents(Batch(keys=["0", "1"]), SEEDS)) / 2 + 0.5


def test_the_pipeline_makes_the_images_that_we_make(tmp_path: Path, monkeypatch) -> None:
    diffusers = pytest.importorskip("diffusers")
    path = run(tmp_path)
    assert export(path, tmp_path / "out", form="diffusers").what == "pipeline"
    pipeline = diffusers.DiffusionPipeline.from_pretrained(str(tmp_path / "out"))
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline) is diffusers.LDMPipeline
    noise = seeded_noise(SEEDS, "start", (3, 8, 8))
    monkeypatch.setitem(type(pipeline).__call__.__wrapped__.__globals__, "randn_tensor", lambda shape, **_: noise)
    theirs = pipeline(batch_size=2, num_inference_steps=STEPS, output_type="np").images
    ours = our_images(path)
    assert ours.std() > 0.05
    torch.testing.assert_close(torch.from_numpy(theirs).permute(0, 3, 1, 2), ours, rtol=0, atol=1e-4)


def test_a_quantised_first_stage_is_refused(tmp_path: Path) -> None:
    path = run(tmp_path, bottleneck=VQ, quant_conv=True, post_quant_conv=True)
    with pytest.raises(InputError, match=r"its first stage has the bottleneck VQ.*--unet-only writes its UNet alone"):
        export(path, tmp_path / "out", form="diffusers")
    assert not (tmp_path / "out").exists()

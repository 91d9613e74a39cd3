"""A training step of stage two on images and captions, against the same step on what a cache holds of them.

    OMP_NUM_THREADS=1 python benchmarks/cached_latents.py [--rounds 5] [--threads 1] [--batch 4] [--size 128]
    python benchmarks/cached_latents.py --device cuda --large --batch 16 --size 512

The first stage is LDM's kl-f8 (83.7 M parameters), the text encoder a frozen transformer of the size of CLIP ViT-L/14's
(12 layers of width 768, 77 tokens), the backbone the small UNet (24.8 M) or, ``--large``, that of Stable Diffusion 1
(860 M); all weights are random. A step draws the posterior, and is forward, loss, backward, fused AdamW. Contestants
take turns in one process, each twice a round; reading is not part of the step. On a GPU all computes in bfloat16
autocast, on a CPU in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from interleave import HEAD, cpu_clock, gpu_seconds, race
from omegaconf import OmegaConf
from torch import Tensor
from torch.optim import AdamW
from unets import SMALL, STABLE_DIFFUSION_1, TOKENS, ours

from latentdiff.config.instantiate import build
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.loss import DiffusionLoss
from latentdiff.diffusion.noise import Draws
from latentdiff.diffusion.parameterization import Velocity
from latentdiff.diffusion.path import RectifiedFlow
from latentdiff.diffusion.timesteps import Uniform
from latentdiff.diffusion.weighting import Unit
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.models.text_transformer import TextTransformer
from latentdiff.training.parts import latents, moments
from latentdiff.types import Batch, Conditioning

FIRST_STAGE = Path(__file__).parent.parent / "configs/autoencoder/kl_f8.yaml"
CLIP = {"width": 768, "layers": 12, "heads": 12, "max_length": TOKENS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=128, help="pixels of a side")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--large", action="store_true", help="the UNet of Stable Diffusion 1")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.device}, batches of {args.batch} of {args.size} px, {args.rounds} rounds")
    sizes = STABLE_DIFFUSION_1 if args.large else SMALL | {"context_dim": CLIP["width"]}
    clock = gpu_seconds if args.device == "cuda" else cpu_clock(args.threads)
    times = race(contestants(sizes, args.batch, args.size, args.device), args.rounds, clock)
    print(f"\n{HEAD}")
    print(times.line("latents cached", "latents", "nothing"))
    print(times.line("latents and text cached", "latents and text", "nothing"))
    names = ("nothing", "latents", "latents and text")
    print("\nseconds a step: " + ", ".join(f"{name} {times.seconds(name):.3f}" for name in names))


def contestants(sizes: dict, count: int, size: int, device: str) -> dict[str, Callable[[], None]]:
    """A training step by what of it is cached. All train one backbone."""
    torch.manual_seed(0)
    codec = LatentCodec(autoencoder=build(OmegaConf.load(FIRST_STAGE)), mean=0.0, std=1.0).to(device)
    text = TextTransformer(**CLIP).to(device).eval().requires_grad_(False)
    denoiser = Denoiser(backbone=ours(sizes), path=RectifiedFlow(), parameterization=Velocity()).to(device)
    loss = DiffusionLoss(timesteps=Uniform(), weighting=Unit())
    optimizer = AdamW(denoiser.parameters(), lr=1e-4, fused=True)
    image = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=device)
    ids = torch.randint(0, 49408, (count, TOKENS), device=device)
    mask = torch.ones(count, TOKENS, dtype=torch.bool, device=device)
    images = Batch(keys=[str(i) for i in range(count)], image=image)
    with torch.no_grad():
        mean, std = moments(codec, images)
        tokens = text(ids, mask)
    cached = replace(images, image=None, latent_mean=mean, latent_std=std)

    def encoded() -> Tensor:
        with torch.no_grad():
            return text(ids, mask)

    def step(batch: Batch, read: Callable[[], Tensor]) -> None:
        draws = Draws.of(batch, seed=0, number=0, device=device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            x0 = latents(codec, batch, draws)
            noise, t = draws.normal("noise", tuple(x0.shape[1:])), loss.sample_t(draws.stratified("t"))
            value = loss(denoiser, x0, noise, t, Conditioning(tokens=read())).mean()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {
        "nothing": lambda: step(images, encoded),
        "latents": lambda: step(cached, encoded),
        "latents and text": lambda: step(cached, lambda: tokens),
    }


if __name__ == "__main__":
    main()

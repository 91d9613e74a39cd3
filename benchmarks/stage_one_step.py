"""Stage one: our training step against the CompVis order of work, our autoencoder against diffusers'.

    python benchmarks/stage_one_step.py [--rounds 9] [--threads 1]

Everything runs in one process, the contestants taking turns; each ratio is the median over the rounds of
(their time / our time) in process CPU time. Beside it stands a null control, the same code against itself: differences
of its size are noise. Peak memory is that of a process of its own over its imports (``--memory``). LPIPS has random
weights: speed does not depend on them. ``--gpu`` measures kl_f8 at 256 px instead, in bfloat16, compiled,
one contestant after the other and without a control.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from interleave import cpu_seconds, output_of_process, peak_mib, race
from torch import nn

from latentdiff.losses.adversarial import AdversarialSchedule, Hinge
from latentdiff.losses.reconstruction import ReconstructionLoss
from latentdiff.models.autoencoder.autoencoder import Autoencoder
from latentdiff.models.autoencoder.bottlenecks.kl import KL
from latentdiff.models.discriminator import PatchDiscriminator
from latentdiff.models.perceptual import LPIPS
from latentdiff.training.adversarial_game import AdversarialGame
from latentdiff.training.tally import Tally
from latentdiff.types import Batch

SIZE, BATCH = 64, 8
F4 = {"channels": 32, "channel_multipliers": (1, 2, 4), "num_res_blocks": 2, "latent_channels": 4}
F8 = {"channels": 128, "channel_multipliers": (1, 2, 4, 4), "num_res_blocks": 2, "latent_channels": 4}
KL_WEIGHT, DISCRIMINATOR_WEIGHT = 1e-6, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", choices=["ours", "diffusers"], help="peak memory of one autoencoder step")
    parser.add_argument("--gpu", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        print(peak_of_step(args.memory))
    elif args.gpu:
        gpu()
    else:
        print(f"torch {torch.__version__}, {args.threads} thread(s), {args.rounds} rounds, float32")
        compare("training step, CompVis order", ours_step(), compvis_step(), args.rounds)
        compare("autoencoder fwd + bwd, diffusers", autoencoder_pass(ours()), autoencoder_pass(theirs()), args.rounds)
        threads = str(args.threads)
        memory = {
            name: float(output_of_process(__file__, "--memory", name, "--threads", threads))
            for name in ("ours", "diffusers")
        }
        print(
            f"peak memory over imports: ours {memory['ours']:.0f} MiB, diffusers {memory['diffusers']:.0f} MiB, "
            f"ratio {memory['ours'] / memory['diffusers']:.3f}"
        )


def compare(name: str, us: Callable[[], None], them: Callable[[], None], rounds: int) -> None:
    times = race({"us": us, "them": them}, rounds, cpu_seconds)
    print(f"{name}: {times.ratio('us', 'them')}, null control {times.null('us')}", flush=True)


def ours() -> nn.Module:
    torch.manual_seed(0)
    return Autoencoder(bottleneck=KL(), **F4)


def theirs(sizes: dict = F4, size: int = SIZE) -> nn.Module:
    """diffusers' AutoencoderKL of the same architecture."""
    from diffusers import AutoencoderKL

    levels = len(sizes["channel_multipliers"])
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=[sizes["channels"] * m for m in sizes["channel_multipliers"]],
        layers_per_block=sizes["num_res_blocks"],
        latent_channels=sizes["latent_channels"],
        sample_size=size,
    )


def autoencoder_pass(model: nn.Module) -> Callable[[], None]:
    """Forward through a posterior sample, L1 + KL, backward."""
    image = images()
    diffusers = not isinstance(model, Autoencoder)

    def step() -> None:
        posterior = model.encode(image).latent_dist if diffusers else model.encode(image)
        z = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
        reconstruction = model.decode(z).sample if diffusers else model.decode(z)
        kl = 0.5 * (posterior.mean.square() + posterior.logvar.exp() - 1.0 - posterior.logvar).sum()
        ((reconstruction - image).abs().sum() + KL_WEIGHT * kl).div(len(image)).backward()
        model.zero_grad(set_to_none=True)

    return step


def images(batch: int = BATCH, size: int = SIZE) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Parts:
    """What both orders of work train: the same networks with the same optimisers."""

    def __init__(self) -> None:
        self.autoencoder = ours()
        self.reconstruction = ReconstructionLoss(perceptual=random_lpips())
        self.discriminator = PatchDiscriminator()
        self.optimizers = [
            torch.optim.AdamW(part.parameters(), lr=1e-5, fused=True) for part in (self.autoencoder, self.discriminator)
        ]


def random_lpips() -> LPIPS:
    """LPIPS's network from a file in torchvision's layout with random weights."""
    state, number = {}, 0
    for widths in ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512)):
        for before, width in pairwise(widths):
            state[f"features.{number}.weight"] = torch.randn(width, before, 3, 3) * (2 / (9 * before)) ** 0.5
            state[f"features.{number}.bias"] = torch.zeros(width)
            number += 2
        number += 1
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, path := Path(folder) / "vgg16.pth")
        return LPIPS(weights=str(path))


def ours_step() -> Callable[[], None]:
    """``AutoencoderModule.training_step`` without Lightning around it."""
    parts = Parts()
    game = AdversarialGame(
        autoencoder=parts.autoencoder,
        reconstruction=parts.reconstruction,
        discriminator=parts.discriminator,
        schedule=AdversarialSchedule(weight=DISCRIMINATOR_WEIGHT, start=0),
        loss=Hinge(),
        r1=None,
        lecam=None,
        bottleneck_weight=KL_WEIGHT,
        seed=0,
    )
    keys = [str(i) for i in range(BATCH)]
    batch = Batch(keys=keys, image=((images() + 1) * 127.5).round().byte())

    def step() -> None:
        tally = Tally()
        for optimizer in parts.optimizers:
            optimizer.zero_grad()
        game.play(batch, 0, tally, lambda loss, final: loss.backward(), None)
        tally.settle(keys=keys, number=0)
        for optimizer in parts.optimizers:
            optimizer.step()

    return step


def compvis_step() -> Callable[[], None]:
    """LDM's order: for either optimiser a forward pass of the autoencoder and of LPIPS, with the other's parameters
    switched off as Lightning toggles them; the adaptive weight by two autograd.grad."""
    parts, image = Parts(), images()
    autoencoder, discriminator = parts.autoencoder, parts.discriminator

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        posterior = autoencoder.encode(image)
        reconstruction = autoencoder.decode(posterior.mean + posterior.std * torch.randn_like(posterior.mean))
        kl = 0.5 * (posterior.mean.square() + posterior.logvar.exp() - 1.0 - posterior.logvar).sum((1, 2, 3)).mean()
        return reconstruction, kl

    def step() -> None:
        autoencoder.requires_grad_(True)
        discriminator.requires_grad_(False)
        reconstruction, kl = forward()
        nll = parts.reconstruction(reconstruction, image).mean()
        gan = -discriminator(reconstruction).mean()
        last = autoencoder.last_layer
        (of_nll,) = torch.autograd.grad(nll, last, retain_graph=True)
        (of_gan,) = torch.autograd.grad(gan, last, retain_graph=True)
        weight = (of_nll.norm() / (of_gan.norm() + 1e-4)).clamp(0, 1e4).detach() * DISCRIMINATOR_WEIGHT
        parts.optimizers[0].zero_grad()
        (nll + KL_WEIGHT * kl + weight * gan).backward()
        parts.optimizers[0].step()

        autoencoder.requires_grad_(False)
        discriminator.requires_grad_(True)
        reconstruction, _ = forward()
        parts.reconstruction(reconstruction, image)
        real, fake = discriminator(image), discriminator(reconstruction.detach())
        loss = 0.5 * (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())
        parts.optimizers[1].zero_grad()
        loss.backward()
        parts.optimizers[1].step()

    return step


def peak_of_step(name: str) -> float:
    """MiB over the imports, of three training passes."""
    from diffusers import AutoencoderKL  # noqa: F401  both contestants pay for the same imports

    return peak_mib(lambda: autoencoder_pass(ours() if name == "ours" else theirs()))


def gpu() -> None:
    """kl_f8 at 256 px: images per second of forward and backward in bfloat16, compiled, and the largest batch."""
    from torch.utils.flop_counter import FlopCounterMode

    contestants = {
        "ours": lambda: Autoencoder(bottleneck=KL(), **F8),
        "diffusers": lambda: theirs(F8, 256),
    }
    for name, make in contestants.items():
        model = make().cuda()
        with FlopCounterMode(display=False) as counter:
            gpu_pass(model, 4)()
        flops = counter.get_total_flops() / 4
        compiled = torch.compile(model.encode), torch.compile(model.decode)
        for batch in (8, 16, 32, 64):
            torch._dynamo.reset()  # else the second size compiles for any
            speed = gpu_speed(gpu_pass(model, batch, *compiled), batch)
            mfu = speed * flops / 989e12
            print(
                f"{name} batch {batch}: {speed:.1f} images/s, MFU {mfu:.3f} of an H100/H200's 989 TFLOP/s", flush=True
            )
        print(f"{name}: largest batch that fits, in powers of two: {largest_batch(model)}", flush=True)
        del model, compiled
        torch.cuda.empty_cache()


def gpu_pass(model: nn.Module, batch: int, encode: Callable | None = None, decode: Callable | None = None) -> Callable:
    image = images(batch, 256).cuda()
    encode, decode = encode or model.encode, decode or model.decode
    diffusers = not isinstance(model, Autoencoder)

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            posterior = encode(image).latent_dist if diffusers else encode(image)
            z = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
            reconstruction = decode(z).sample if diffusers else decode(z)
            loss = (reconstruction.float() - image).abs().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def gpu_speed(step: Callable[[], None], batch: int, repeats: int = 10) -> float:
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    torch.cuda.synchronize()
    return batch * repeats / (time.perf_counter() - began)


def largest_batch(model: nn.Module) -> int:
    fits, batch = 0, 8
    while True:
        try:
            gpu_pass(model, batch)()
        except torch.cuda.OutOfMemoryError:
            return fits
        fits, batch = batch, 2 * batch


if __name__ == "__main__":
    main()

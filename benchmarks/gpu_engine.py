"""The UNet of Stable Diffusion 1 on a GPU in bfloat16, eager and compiled, against diffusers' with the same weights.

    python benchmarks/gpu_engine.py train [--batch 16] [--rounds 10]
    python benchmarks/gpu_engine.py sample [--batches 1,16] [--rounds 5]

``train``: forward, mean squared error, backward, fused AdamW on 64 x 64 latents; images per second and the share of
the GPU's peak that the model's own arithmetic makes (MFU: three forward passes an image). ``sample``: 20 steps of
DPM-Solver++(2M) with classifier-free guidance, without the decoder. All contestants take turns in one process, each
twice a round, so that each also has a null control. Ours is compiled as ``task.compile=blocks`` does it, diffusers'
with ``torch.compile`` as a whole; compiling takes minutes before the first round. Training all at once takes about
90 GiB; ``--contestants`` names fewer. ``--small --device cpu --backend eager`` only tries the script out.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from interleave import HEAD, Times, gpu_seconds, race, wall_seconds
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from unets import SMALL, STABLE_DIFFUSION_1, check_equal, inputs, ours, parameters, predict, theirs

from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.grids import Leading
from latentdiff.diffusion.guidance import ClassifierFree
from latentdiff.diffusion.parameterization import Epsilon
from latentdiff.diffusion.path import ScaledLinearDDPM
from latentdiff.diffusion.samplers.dpmpp_2m import DPMSolverPP2M
from latentdiff.models.backbones.unet import UNet
from latentdiff.training.compilation import compile_blocks
from latentdiff.types import Conditioning, Conditions

PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "B200": 2250}
"""Dense bfloat16, of the data sheets."""
STEPS, SCALE = 20, 7.5
OURS, COMPILED = "ours eager", "ours blocks"
PEER, PEER_COMPILED = "diffusers eager", "diffusers compiled"
LAST = "ours blocks channels last"
HALF, HALF_COMPILED = "ours eager bfloat16 weights", "ours blocks bfloat16 weights"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["train", "sample"])
    parser.add_argument("--batch", type=int, default=16, help="of training")
    parser.add_argument("--batches", default="1,16", help="of sampling")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3, help="training steps in one timing")
    parser.add_argument("--contestants", help="their names, comma-separated; default: all")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in dense bfloat16; default: by its name")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_bf16_supported():
        parser.error("this GPU does not compute in bfloat16")
    lab = Lab(args)
    print(f"torch {torch.__version__}, {lab.name}, peak taken as {lab.peak} TFLOP/s")
    print(f"a forward pass is {lab.flops / 1e12:.3f} TFLOP an image")
    found = train(lab) if args.part == "train" else sample(lab)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=2))


class Lab:
    """The two networks on the CPU, and how they are brought to the device."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, args.device
        self.sizes, self.side = (SMALL, 16) if args.small else (STABLE_DIFFUSION_1, 64)
        self.ours = ours(self.sizes)
        self.theirs = theirs(self.ours, self.sizes)
        check_equal(self.ours, self.theirs, self.sizes, 16)
        print(f"both have {parameters(self.ours):,} parameters and equal outputs")
        self.flops = forward_flops(self.sizes, self.side)
        self.name = torch.cuda.get_device_name() if self.device == "cuda" else "CPU"
        known = [tflops for card, tflops in PEAK_TFLOPS.items() if card in self.name]
        self.peak = args.peak_tflops or (known[0] if known else float("nan"))

    def place(self, model: nn.Module) -> nn.Module:
        """A copy on the device."""
        return copy.deepcopy(model).to(self.device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.bfloat16)

    def race(self, makers: dict[str, Callable[[], Callable[[], None]]]) -> Times:
        """Builds and warms up one after the other, so that a failure names its contestant."""
        wanted = self.args.contestants.split(",") if self.args.contestants else list(makers)
        steps = {}
        for name in wanted:
            began = time.perf_counter()
            steps[name] = makers[name]()
            for _ in range(3):
                steps[name]()
            print(f"{name}: ready after {time.perf_counter() - began:.0f} s", flush=True)
        return race(steps, self.args.rounds, gpu_seconds if self.device == "cuda" else wall_seconds)

    def mfu(self, images_per_second: float, forward_passes: float) -> float:
        return images_per_second * forward_passes * self.flops / (self.peak * 1e12)


def forward_flops(sizes: dict, side: int) -> float:
    """Of one image's forward pass: products of matrices and convolutions, a multiplication and an addition each."""
    with torch.device("meta"):
        model = UNet(**sizes)
    x, t, tokens, _ = inputs(sizes, 1, side, "meta")
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        predict(model, x, t, tokens)
    return counter.get_total_flops()


def train(lab: Lab) -> dict:
    batch, repeats = lab.args.batch, lab.args.repeats

    def blocks(memory_format: torch.memory_format = torch.contiguous_format) -> nn.Module:
        model = lab.place(lab.ours).to(memory_format=memory_format)
        compile_blocks(model, "blocks", backend=lab.args.backend)
        return model

    def step_of(model: nn.Module, forward: nn.Module | None = None, channels_last: bool = False) -> Callable[[], None]:
        x, t, tokens, target = inputs(lab.sizes, batch, lab.side, lab.device)
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

        def step() -> None:
            for _ in range(repeats):
                with lab.autocast():
                    output = predict(model if forward is None else forward, x, t, tokens)
                    loss = F.mse_loss(output.float(), target)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

        return step

    def compiled_peer() -> Callable[[], None]:
        model = lab.place(lab.theirs)
        return step_of(model, torch.compile(model, backend=lab.args.backend))

    times = lab.race(
        {
            OURS: lambda: step_of(lab.place(lab.ours)),
            COMPILED: lambda: step_of(blocks()),
            LAST: lambda: step_of(blocks(torch.channels_last), channels_last=True),
            PEER: lambda: step_of(lab.place(lab.theirs)),
            PEER_COMPILED: compiled_peer,
        }
    )
    speeds = table(lab, times, batch * repeats, forward_passes=3)
    ratios(times, [(OURS, PEER, None), (COMPILED, PEER, 1.25), (COMPILED, PEER_COMPILED, None), (LAST, PEER, None)])
    best = max(value["mfu"] for name, value in speeds.items() if name.startswith("ours"))
    print(f"\nour best MFU {best:.3f}: goal >= 0.35 {'met' if best >= 0.35 else 'missed'}")
    return {"batch": batch, "speeds": speeds}


def table(lab: Lab, times: Times, images: int, forward_passes: int) -> dict:
    print("\n| | images/s | MFU | null control |\n|---|---|---|---|")
    found = {}
    for name in times.rounds[0]:
        speed = images / times.seconds(name)
        found[name] = {"images_per_second": speed, "mfu": lab.mfu(speed, forward_passes)}
        print(f"| {name} | {speed:.2f} | {found[name]['mfu']:.3f} | {times.null(name)} |", flush=True)
    return found


def ratios(times: Times, pairs: list[tuple[str, str, float | None]]) -> None:
    print(f"\n{HEAD}")
    for us, them, goal in pairs:
        if us in times.rounds[0] and them in times.rounds[0]:
            print(times.line(f"{us} against {them}", us, them, goal), flush=True)


def sample(lab: Lab) -> dict:
    found = {}
    for batch in map(int, lab.args.batches.split(",")):
        print(f"\nbatch {batch}, {STEPS} steps with guidance")
        torch._dynamo.reset()  # else the second size compiles for any
        times = lab.race(sampling(lab, batch))
        found[batch] = table(lab, times, batch, forward_passes=2 * STEPS)
        pairs = [(OURS, PEER), (HALF, PEER), (COMPILED, PEER), (HALF_COMPILED, PEER), (HALF_COMPILED, PEER_COMPILED)]
        ratios(times, [(us, them, None) for us, them in pairs])
        if lab.device == "cuda":
            torch.cuda.empty_cache()
    return {"speeds": found}


def sampling(lab: Lab, batch: int) -> dict[str, Callable[[], Callable[[], None]]]:
    """Ours under autocast over float32 weights, as the programs do it, and over bfloat16 weights; diffusers' as its
    pipelines do it, bfloat16 throughout."""
    x, _, tokens, _ = inputs(lab.sizes, batch, lab.side, lab.device)
    null = torch.zeros_like(tokens)

    def our_sampling(half: bool, compiled: bool) -> Callable[[], None]:
        network = lab.place(lab.ours).eval().requires_grad_(False)
        network = network.to(torch.bfloat16) if half else network
        if compiled:
            compile_blocks(network, "blocks", backend=lab.args.backend)
        denoiser = Denoiser(backbone=network, path=ScaledLinearDDPM(), parameterization=Epsilon()).eval()
        conditions = Conditions(Conditioning(tokens=tokens), Conditioning(tokens=null))
        guidance, solver, times = ClassifierFree(scale=SCALE), DPMSolverPP2M(), Leading()(denoiser.path, STEPS)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            with lab.autocast():
                return guidance(denoiser, x_t, t, conditions)

        return torch.no_grad()(lambda: solver(denoise, denoiser.path, x, times.to(x.device), lambda i: None))

    return {
        OURS: partial(our_sampling, half=False, compiled=False),
        HALF: partial(our_sampling, half=True, compiled=False),
        COMPILED: partial(our_sampling, half=False, compiled=True),
        HALF_COMPILED: partial(our_sampling, half=True, compiled=True),
        PEER: partial(their_sampling, lab, x, tokens, null, compiled=False),
        PEER_COMPILED: partial(their_sampling, lab, x, tokens, null, compiled=True),
    }


def their_sampling(lab: Lab, x: Tensor, tokens: Tensor, null: Tensor, *, compiled: bool) -> Callable[[], None]:
    """The loop of StableDiffusionPipeline."""
    from diffusers import DPMSolverMultistepScheduler

    network = lab.place(lab.theirs).eval().requires_grad_(False).to(torch.bfloat16)
    network = torch.compile(network, backend=lab.args.backend) if compiled else network
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    both = torch.cat([null, tokens]).to(torch.bfloat16)

    @torch.no_grad()
    def run() -> None:
        scheduler.set_timesteps(STEPS, device=x.device)
        latents = x.to(torch.bfloat16) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            joined = scheduler.scale_model_input(torch.cat([latents] * 2), t)
            away, towards = network(joined, t, encoder_hidden_states=both, return_dict=False)[0].chunk(2)
            latents = scheduler.step(away + SCALE * (towards - away), t, latents, return_dict=False)[0]

    return run


if __name__ == "__main__":
    main()

"""The samplers' own share of a sampling: what is left of its time when the model does nothing.

    OMP_NUM_THREADS=1 python benchmarks/sample.py [--steps 20,50] [--rounds 3] [--samplers NAMES] [--float32]

Every sampler of configs/sampler takes its steps with the UNet of 24.8 M parameters on 16 latents of 16 x 16 (bfloat16
where the CPU computes in it, which makes the share larger; without guidance, which would halve it), and the same steps
with a model that returns zeros. "sampler" is solver, hooks and the noise of every step alone, "and denoiser" also the
path's and the parameterization's arithmetic around the network. Timings take turns; the null control is the first
timing of the sampler over the second. Rectified flow, or Stable Diffusion's table where the sampler needs one.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from interleave import Clock, Spread, cpu_clock, verdict
from omegaconf import DictConfig
from torch import Tensor, nn
from unets import SMALL, TOKENS, ours, parameters

from latentdiff.app import schema
from latentdiff.config.compose import compose
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.noise import seeded_noise
from latentdiff.diffusion.parameterization import V, Velocity
from latentdiff.diffusion.path import RectifiedFlow, ScaledLinearDDPM
from latentdiff.nn.precision import computes_in_bf16
from latentdiff.types import Conditioning

CONFIGS = Path(__file__).parent.parent / "configs"
BATCH, SHAPE = 16, (4, 16, 16)
REPEATS = 5
GOAL = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="20,50")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samplers", help="names in configs/sampler, comma-separated; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    schema.register()
    bf16 = computes_in_bf16("cpu") and not args.float32
    precision = "bfloat16" if bf16 else "float32"
    network = ours(SMALL).eval().requires_grad_(False)
    print(f"torch {torch.__version__}, {args.threads} thread(s), {parameters(network):,} parameters, {precision}")
    print(
        "\n| sampler | path | steps | real s | sampler | null control | and denoiser | goal |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    names = args.samplers.split(",") if args.samplers else sampler_names()
    rows = []
    for name in names:
        for steps in map(int, args.steps.split(",")):
            row = measure(name, steps, network, bf16, args.rounds, cpu_clock(args.threads))
            shares = f"{row['share']:.3%} | {row['null']} | {row['share_with_denoiser']:.3%}"
            goal = verdict(row["share"], at_most=GOAL)
            print(f"| {name} | {row['path']} | {steps} | {row['real']:.2f} | {shares} | {goal} |", flush=True)
            rows.append({**row, "null": vars(row["null"])})
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rows, indent=2))


def sampler_names() -> list[str]:
    """All but the stand-in for the checkpoint's own."""
    return sorted(file.stem for file in (CONFIGS / "sampler").glob("*.yaml") if file.stem != "checkpoint")


def measure(name: str, steps: int, network: nn.Module, bf16: bool, rounds: int, clock: Clock) -> dict:
    cfg, faults = compose(CONFIGS, "sample", [f"sampler={name}", "checkpoint=none", "prompt=none"])
    if cfg is None or faults:
        raise InputError("\n".join(map(str, faults)))
    denoiser, times = fitting(cfg.sampler, steps, network)
    idle = Denoiser(backbone=Idle(), path=denoiser.path, parameterization=denoiser.parameterization)
    cond = Conditioning(tokens=seeded_noise(list(range(BATCH)), "tokens", (TOKENS, SMALL["context_dim"])))
    zeros = torch.zeros(BATCH, *SHAPE)
    solver = build(cfg.sampler.solver)

    def real(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return denoiser.denoise(x, t, cond)

    sampling = {
        "real": run(solver, real, denoiser, times),
        "sampler": repeated(run(solver, lambda x, t: zeros, denoiser, times)),
        "denoiser": repeated(run(solver, lambda x, t: idle.denoise(x, t, cond), denoiser, times)),
    }
    with torch.no_grad():
        found = timed(sampling, rounds, clock)
    own, both, whole = (statistics.median(found[key]) for key in ("sampler", "denoiser", "real"))
    first, second = found["sampler"][::2], found["sampler"][1::2]
    return {
        "sampler": name,
        "steps": steps,
        "path": type(denoiser.path).__name__,
        "real": whole,
        "share": own / REPEATS / whole,
        "share_with_denoiser": both / REPEATS / whole,
        "null": Spread.of([a / b for a, b in zip(first, second)]),
    }


class Idle(nn.Module):
    """A network that does nothing."""

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return torch.zeros_like(x)


def fitting(sampler: DictConfig, steps: int, network: nn.Module) -> tuple[Denoiser, Tensor]:
    """The network on the first path that the sampler runs on."""
    pairs = [(RectifiedFlow(), Velocity()), (ScaledLinearDDPM(), V())]
    for path, parameterization in pairs:
        denoiser = Denoiser(backbone=network, path=path, parameterization=parameterization)
        try:
            times = build(sampler.grid)(path, steps, denoiser.t_max)
            run(build(sampler.solver), lambda x, t: torch.zeros_like(x), denoiser, times)()
        except InputError:
            if path is pairs[-1][0]:
                raise
        else:
            return denoiser.eval(), times
    raise AssertionError


def run(solver: Callable, denoise: Callable, denoiser: Denoiser, times: Tensor) -> Callable[[], Tensor]:
    seeds = list(range(BATCH))

    def noise_at(step: int) -> Tensor:
        return seeded_noise(seeds, f"step {step}", SHAPE)

    start = seeded_noise(seeds, "start", SHAPE)
    return lambda: solver(denoise, denoiser.path, start, times, noise_at)


def repeated(sample: Callable[[], Tensor]) -> Callable[[], None]:
    def several() -> None:
        for _ in range(REPEATS):
            sample()

    return several


def timed(sampling: dict[str, Callable], rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Each round: idle, real, idle again."""
    for sample in (sampling["sampler"], sampling["denoiser"]):
        sample()
    found: dict[str, list[float]] = {name: [] for name in sampling}
    for _ in range(rounds):
        for name in ("sampler", "denoiser", "real", "sampler", "denoiser"):
            found[name].append(clock(sampling[name]))
    return found


if __name__ == "__main__":
    main()

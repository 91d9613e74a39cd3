"""A training step of the UNet against diffusers' UNet2DConditionModel with the same weights, its memory, and the EMA.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py [--rounds 9] [--threads 1] [--only step,memory,ema] [--out FILE]

The step is forward, mean squared error, backward, AdamW; 24.8 M parameters, batch 16 of 16 x 16 latents, 77 tokens.
Ours takes AdamW as configs/optim/adamw.yaml builds it (fused), diffusers the defaults of its training scripts, and
once more fused AdamW. bfloat16 is autocast over float32 weights in both. All contestants take turns in one process,
each twice a round: the null control is a contestant against itself, and differences of its size are noise. One thread
is timed by the process's CPU time, more by the wall. Peak memory is that of a process of its own over its imports.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from interleave import HEAD, Clock, Spread, cpu_clock, output_of_process, peak_mib, race, verdict
from omegaconf import OmegaConf
from torch import nn
from torch.optim import AdamW, Optimizer
from unets import SMALL, check_equal, inputs, ours, parameters, predict, theirs

from latentdiff.config.instantiate import build
from latentdiff.nn.precision import computes_in_bf16
from latentdiff.training.ema import Ema

BATCH, SIDE = 16, 16
OPTIM = Path(__file__).parent.parent / "configs/optim/adamw.yaml"
SCRIPT_DEFAULTS = {"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 1e-2, "eps": 1e-8}
"""Of diffusers' train_text_to_image.py, which leaves the implementation to AdamW."""
PARTS = ("step", "memory", "ema")
MEMORY_PROCESSES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # what a process of its own is called with
    args = parser.parse_args()
    wanted = args.only.split(",")
    if strange := set(wanted) - set(PARTS):
        parser.error(f"--only: expected some of {', '.join(PARTS)}, got {', '.join(sorted(strange))}")
    torch.set_num_threads(args.threads)
    if args.peak:
        print(peak_mib(lambda: contestants([args.peak])[args.peak]))
        return
    bf16 = computes_in_bf16("cpu")
    print(f"torch {torch.__version__}, {args.threads} thread(s), {args.rounds} rounds")
    if not bf16:
        print("this CPU has no bfloat16 instructions: the bfloat16 rows are left out")
    clock, found = cpu_clock(args.threads), {}
    if "step" in wanted:
        found["step"] = steps(args.rounds, clock, bf16)
    if "memory" in wanted:
        found["memory"] = memory(args.threads, bf16)
    if "ema" in wanted:
        found["ema"] = ema(args.rounds, clock)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=2))


STEPS = [
    ("float32, diffusers with its default AdamW", "ours float32", "diffusers float32 default", 1.02),
    ("float32, both with fused AdamW", "ours float32", "diffusers float32 fused", None),
    ("bfloat16, diffusers float32 with its default AdamW", "ours bfloat16", "diffusers float32 default", 1.45),
    ("bfloat16, diffusers bfloat16 with fused AdamW", "ours bfloat16", "diffusers bfloat16 fused", 1.10),
]
"""Label, us, them, goal."""


def steps(rounds: int, clock: Clock, bf16: bool) -> dict:
    rows = [row for row in STEPS if bf16 or not row[1].endswith("bfloat16")]
    names = list(dict.fromkeys(name for _, us, them, _ in rows for name in (us, them)))
    times = race(contestants(names), rounds, clock)
    print(f"\n{HEAD}")
    for row in rows:
        print(times.line(*row), flush=True)
    seconds = {name: times.seconds(name) for name in names}
    print("\nseconds a step: " + ", ".join(f"{name} {value:.3f}" for name, value in seconds.items()))
    return {"ratios": {label: vars(times.ratio(us, them)) for label, us, them, _ in rows}, "seconds": seconds}


def contestants(names: list[str]) -> dict[str, Callable[[], None]]:
    """A training step by name: whose UNet, in which precision, with which AdamW."""
    us = ours(SMALL)
    them = theirs(us, SMALL)
    check_equal(us, them, SMALL, SIDE)
    print(f"both have {parameters(us):,} parameters and equal outputs")
    weights = us.state_dict(), them.state_dict()
    makers = {"ours": lambda: ours(SMALL), "diffusers": lambda: type(them).from_config(them.config)}
    found = {}
    for name in names:
        who, precision, *optimizer = name.split()
        model = makers[who]()
        model.load_state_dict(weights[who == "diffusers"])
        found[name] = training_step(model, precision == "bfloat16", adamw(model, (optimizer or ["ours"])[0]))
    return found


def adamw(model: nn.Module, kind: str) -> Optimizer:
    if kind == "ours":
        return build(OmegaConf.create({"optim": OmegaConf.load(OPTIM)}).optim.optimizer)(model.parameters())
    return AdamW(model.parameters(), **SCRIPT_DEFAULTS, fused=True if kind == "fused" else None)


def training_step(model: nn.Module, bf16: bool, optimizer: Optimizer) -> Callable[[], None]:
    x, t, tokens, target = inputs(SMALL, BATCH, SIDE)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            output = predict(model, x, t, tokens)
        F.mse_loss(output.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def memory(threads: int, bf16: bool) -> dict:
    """Medians over processes that take turns; the control is the first of diffusers' over the last."""
    print("\n| peak memory over imports | ours MiB | diffusers MiB | ours / diffusers | null control | goal |")
    print("|---|---|---|---|---|---|")
    found = {}
    for precision in ("float32", "bfloat16") if bf16 else ("float32",):
        us, them = f"ours {precision}", f"diffusers {precision} {'fused' if precision == 'bfloat16' else 'default'}"
        peaks: dict[str, list[float]] = {us: [], them: []}
        for _ in range(MEMORY_PROCESSES):
            for name, seen in peaks.items():
                printed = output_of_process(__file__, "--peak", name, "--threads", str(threads))
                seen.append(float(printed))
        ratio = statistics.median(peaks[us]) / statistics.median(peaks[them])
        control = peaks[them][0] / peaks[them][-1]
        middle = [f"{statistics.median(seen):.0f}" for seen in peaks.values()]
        goal = verdict(ratio, at_most=1.02)
        print(f"| {precision} | {' | '.join(middle)} | {ratio:.3f} | {control:.3f} | {goal} |", flush=True)
        found[precision] = {"ratio": ratio, "mib": peaks}
    return found


def ema(rounds: int, clock: Clock) -> dict:
    model = ours(SMALL)
    average = Ema(model, decay=0.9999)
    peers = {
        "diffusers EMAModel": EMAModel(model.parameters(), decay=0.9999),
        "diffusers EMAModel, foreach": EMAModel(model.parameters(), decay=0.9999, foreach=True),
    }
    updates = {"ours": repeated(lambda: average.update(model))}
    for name, peer in peers.items():
        updates[name] = repeated(lambda peer=peer: peer.step(model.parameters()))
    times = race(updates, rounds, clock)
    print(f"\n{HEAD}")
    for name in peers:
        print(times.line(f"EMA update, {name}", "ours", name, 2.0), flush=True)
    ratios: dict[str, Spread] = {name: times.ratio("ours", name) for name in peers}
    return {"ratios": {name: vars(ratio) for name, ratio in ratios.items()}, "seconds": times.seconds("ours") / REPEATS}


REPEATS = 5


def repeated(update: Callable[[], object]) -> Callable[[], None]:
    """Several updates, long enough for the clock."""

    def step() -> None:
        for _ in range(REPEATS):
            update()

    return step


if __name__ == "__main__":
    main()

"""Objectives x samplers x guidance at equal training time on the embedded data: the table of docs/results.md.

    python benchmarks/objectives.py [--minutes 5] [--images 200] [--diffusion NAMES] [--samplers NAMES] [--scales 1,3]
                                    [--calls 25] [--first-stage PATH] [--out outputs/objectives]

Each objective (a name in configs/diffusion) trains ``experiment=ldm_txt2img`` from scratch for as many batches as fit
into ``--minutes``, with its whole learning-rate schedule. One short training measures the speed for all: they share
one network, and the table shows the seconds that each took. Then evaluate.py draws ``--images`` held-back captions
with every sampler at every guidance scale, with the same number of calls of the network. A sampler that cannot run an
objective's path is shown as refused. What is already in ``--out`` is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from itertools import product
from pathlib import Path

from programs import attempt, batches_per_second, records, run, training_seconds

DIFFUSION = "rectified_flow_noise_first,rectified_flow,ddpm_epsilon,ddpm_v,cosine_v,edm"
SAMPLERS = "euler_shifted,dpmpp_2m,heun"
TWO_CALLS = ("heun", "heun_karras")
"""Samplers that call the network twice in each step but the last."""
ATTRIBUTES = ("colour", "position", "size", "shape")
TIMED_BATCHES = 40
BAD_INPUT = 2
"""The programs' exit code for what was refused before any work."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of each objective")
    parser.add_argument("--images", type=int, default=200, help="captions of each evaluation")
    parser.add_argument("--diffusion", default=DIFFUSION, help="names in configs/diffusion")
    parser.add_argument("--samplers", default=SAMPLERS, help="names in configs/sampler")
    parser.add_argument("--scales", default="1,3", help="of classifier-free guidance")
    parser.add_argument("--calls", type=int, default=25, help="of the network for each image")
    parser.add_argument("--first-stage", default="auto", help="its checkpoint; auto: trained before or now")
    parser.add_argument("--out", type=Path, default=Path("outputs/objectives"))
    args = parser.parse_args()
    base = ["experiment=ldm_txt2img", f"first_stage.checkpoint={args.first_stage}"]
    objectives = args.diffusion.split(",")
    batches = count_batches(base, objectives[0], args.minutes, args.out / "speed")
    print(f"{batches} batches each\n\n{HEAD}", flush=True)
    rows = []
    for objective in objectives:
        folder = args.out / objective
        if not finished(folder / "train", batches):
            size = [f"max_batches={batches}", f"validate_every={batches}", "resume=never"]
            run("train.py", *base, f"diffusion={objective}", *size, f"run_dir={folder / 'train'}")
        for sampler, scale in product(args.samplers.split(","), map(float, args.scales.split(","))):
            row = evaluated(objective, sampler, scale, folder, args)
            print(line(row), flush=True)
            rows.append(row)
    for reason in sorted({row["refused"] for row in rows if row["refused"] is not None}):
        print(f"\nrefused: {reason}")
    (args.out / "objectives.json").write_text(json.dumps(rows, indent=2))
    print(f"\nwritten: {args.out / 'objectives.json'}; images: {args.out}/*/*/grid.png")


def count_batches(base: list[str], objective: str, minutes: float, run_dir: Path) -> int:
    if not finished(run_dir, TIMED_BATCHES):
        size = [f"max_batches={TIMED_BATCHES}", f"validate_every={TIMED_BATCHES}", "callbacks.log.every=5"]
        run("train.py", *base, f"diffusion={objective}", *size, "resume=never", f"run_dir={run_dir}")
    return max(1, round(batches_per_second(run_dir) * 60 * minutes))


def finished(run_dir: Path, batches: int) -> bool:
    """Whether a training of that length is there; one of another length stops the benchmark."""
    if not (run_dir / "metrics.jsonl").exists():
        return False
    if not (run_dir / "checkpoints/last/manifest.json").exists():
        sys.exit(f"{run_dir} holds a training that was broken off; remove it or give another --out")
    seen = records(run_dir)[-1]["batches_seen"]
    if seen != batches:
        sys.exit(f"{run_dir} holds a training of {seen} batches, not of {batches}; give another --out")
    return True


def evaluated(objective: str, sampler: str, scale: float, folder: Path, args: argparse.Namespace) -> dict:
    where = folder / f"{sampler}_{scale:g}_{args.calls}_{args.images}"
    steps = (args.calls + 1) // 2 if sampler in TWO_CALLS else args.calls
    refused = None
    if not (where / "results.json").exists():
        drawn = [f"sampler={sampler}", f"sampler.steps={steps}", "guidance=classifier_free", f"guidance.scale={scale}"]
        size = [f"num_images={args.images}", "seed=0", f"run_dir={where}"]
        done = attempt("evaluate.py", f"checkpoint={folder / 'train'}", *drawn, *size)
        if done.returncode == BAD_INPUT:
            refused = done.stderr.strip() or done.stdout.strip()
        elif done.returncode:
            sys.exit(f"evaluate.py failed on {where}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    row = {"objective": objective, "sampler": sampler, "steps": steps, "scale": scale, "refused": refused}
    row |= {"batches": records(folder / "train")[-1]["batches_seen"], "seconds": training_seconds(folder / "train")}
    if refused is None:
        results = json.loads((where / "results.json").read_text())["results"]
        row["captions"] = results["captions"]
        row["frechet"] = next(value for key, value in results["frechet"].items() if key.startswith("fd_"))
    return row


HEAD = (
    "| objective | trained s | sampler | steps | guidance | one object | two objects | shapes, one | shapes, two | "
    "Frechet |\n|---|---|---|---|---|---|---|---|---|---|"
)


def line(row: dict) -> str:
    """Accuracies are means over colour, position, size and shape; the shapes alone beside them."""
    start = f"| {row['objective']} | {row['seconds']:.0f} | {row['sampler']} | {row['steps']} | {row['scale']:g} |"
    if row["refused"] is not None:
        return f"{start} refused | | | | |"
    groups = [row["captions"].get(name) for name in ("one_object", "two_objects")]
    means = [f"{statistics.mean(g[a] for a in ATTRIBUTES):.3f}" if g else "" for g in groups]
    shapes = [f"{g['shape']:.3f}" if g else "" for g in groups]
    return f"{start} {' | '.join([*means, *shapes])} | {row['frechet']:.4f} |"


if __name__ == "__main__":
    main()

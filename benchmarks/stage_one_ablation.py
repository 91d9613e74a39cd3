"""Which terms of stage one's loss help, at equal training time on the embedded data: the table of docs/results.md.

    python benchmarks/stage_one_ablation.py [--seconds 90] [--out outputs/ablation]

Each variant is first trained for a few batches to learn its speed, then from scratch for as many batches as fit into
``--seconds``, with its whole learning-rate schedule, and evaluated on 500 held-back images. A variant that is already
in ``--out`` is not trained again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from programs import batches_per_second, records, run

NO_PERCEPTUAL = ["reconstruction.perceptual=null", "reconstruction.perceptual_weight=0"]
ONLY_L1 = ["reconstruction.l2=0"]
VARIANTS = {
    "L1": ["experiment=ae_kl", *ONLY_L1, *NO_PERCEPTUAL, "adversarial=none"],
    "L1 + perceptual": ["experiment=ae_kl", *ONLY_L1, "adversarial=none"],
    "L1 + perceptual + adversary": ["experiment=ae_kl", *ONLY_L1],
    "L1 + L2 + perceptual + adversary (ae_kl)": ["experiment=ae_kl"],
    "ae_kl, KL weight 1e-8": ["experiment=ae_kl", "task.bottleneck_weight=1e-8"],
    "ae_kl, KL weight 1e-4": ["experiment=ae_kl", "task.bottleneck_weight=1e-4"],
    "VQ, 1024 codes (ae_vq)": ["experiment=ae_vq"],
}
SPEED_BATCHES = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90.0, help="training time of each variant")
    parser.add_argument("--out", type=Path, default=Path("outputs/ablation"))
    args = parser.parse_args()
    print(
        "| variant | batches | PSNR dB | Frechet | shape 1 object | shape 2 objects |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for number, (name, overrides) in enumerate(VARIANTS.items()):
        folder = args.out / f"{number}"
        if not (folder / "evaluation" / "results.json").exists():
            batches = round(speed(overrides, folder / "speed") * args.seconds)
            train(overrides, folder / "run", batches)
            run("evaluate.py", f"checkpoint={folder / 'run'}", f"run_dir={folder / 'evaluation'}")
        print(row(name, folder), flush=True)


def train(overrides: list[str], run_dir: Path, batches: int) -> None:
    """``batches`` of training; an adversary joins after 55 % of them, as in ae_kl."""
    schedule = []
    if "adversarial=none" not in overrides:
        parts = {"start": 0.55, "warmup": 0.05, "ramp": 0.1}
        schedule = [f"adversarial.schedule.{name}={round(share * batches)}" for name, share in parts.items()]
    size = [f"max_batches={batches}", f"validate_every={batches}"]
    run("train.py", *overrides, *size, *schedule, f"run_dir={run_dir}")


def speed(overrides: list[str], run_dir: Path) -> float:
    """Batches per second of a short training in the same phases."""
    train([*overrides, "callbacks.log.every=5"], run_dir, SPEED_BATCHES)
    return batches_per_second(run_dir)


def row(name: str, folder: Path) -> str:
    results = json.loads((folder / "evaluation" / "results.json").read_text())["results"]
    batches = records(folder / "run")[-1]["batches_seen"]
    frechet = next(value for key, value in results["frechet"].items() if key.startswith("fd_"))
    captions = results["captions"]
    shapes = " | ".join(f"{captions[scenes]['shape']:.3f}" for scenes in ("one_object", "two_objects"))
    return f"| {name} | {batches} | {results['reconstruction']['psnr']:.2f} | {frechet:.4f} | {shapes} |"


if __name__ == "__main__":
    main()

"""Backbones at equal training time on the embedded data: the table of docs/results.md.

    python benchmarks/backbones.py [--minutes 8] [--images 300] [--out outputs/backbones] [NAME=OVERRIDES ...]

Each trains ``experiment=ldm_txt2img`` from scratch for as many batches as fit into ``--minutes`` at its own measured
speed, with its whole learning-rate schedule. NAME is a line of the table, OVERRIDES (separated by blanks) what train.py
is given; without any the two tiny backbones are compared. ``loss_v`` is val/loss_v, which does not depend on the
training's law of t.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from objectives import ATTRIBUTES, TIMED_BATCHES, finished
from programs import batches_per_second, records, run, training_seconds

BASE = ["experiment=ldm_txt2img"]
COMPARED = ["unet_tiny=backbone=unet_tiny", "dit_tiny=backbone=dit_tiny"]
HEAD = (
    "| backbone | parameters | batches | trained s | loss_v | one object | two objects | shapes, one | shapes, two | "
    "Frechet |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compared", nargs="*", default=COMPARED, metavar="NAME=OVERRIDES")
    parser.add_argument("--minutes", type=float, default=8.0, help="training time of each")
    parser.add_argument("--images", type=int, default=300, help="captions of each evaluation")
    parser.add_argument("--out", type=Path, default=Path("outputs/backbones"))
    args = parser.parse_args()
    print(f"{HEAD}\n|{'---|' * HEAD.count('|', 1)}", flush=True)
    rows = []
    for each in args.compared:
        name, _, overrides = each.partition("=")
        rows.append(measured(name, overrides.split(), args))
        print(line(rows[-1]), flush=True)
    (args.out / "backbones.json").write_text(json.dumps(rows, indent=2))


def measured(name: str, overrides: list[str], args: argparse.Namespace) -> dict:
    folder = args.out / name
    train(folder / "speed", overrides, TIMED_BATCHES, "callbacks.log.every=5")
    train(folder / "train", overrides, round(batches_per_second(folder / "speed") * 60 * args.minutes))
    if not (folder / "evaluate" / "results.json").exists():
        asked = [f"num_images={args.images}", "controls=false", f"run_dir={folder / 'evaluate'}"]
        run("evaluate.py", f"checkpoint={folder / 'train'}", *asked)
    results = json.loads((folder / "evaluate" / "results.json").read_text())["results"]
    return {
        "name": name,
        "parameters": parameters(folder / "train"),
        "batches": records(folder / "train")[-1]["batches_seen"],
        "seconds": training_seconds(folder / "train"),
        "loss_v": next(row["val/loss_v"] for row in reversed(records(folder / "train")) if "val/loss_v" in row),
        "captions": results["captions"],
        "frechet": next(value for key, value in results["frechet"].items() if key.startswith("fd_")),
    }


def train(run_dir: Path, overrides: list[str], batches: int, *more: str) -> None:
    if not (run_dir / "metrics.jsonl").exists() or not finished(run_dir, records(run_dir)[-1]["batches_seen"]):
        size = [f"max_batches={batches}", f"validate_every={batches}", "resume=never", f"run_dir={run_dir}"]
        run("train.py", *BASE, *overrides, *size, *more)


def parameters(run_dir: Path) -> int:
    """Of the backbone alone."""
    from latentdiff.checkpoint.foreign.backbones import own_backbone

    return sum(p.numel() for p in own_backbone(run_dir).parameters())


def line(row: dict) -> str:
    groups = [row["captions"][name] for name in ("one_object", "two_objects")]
    means = [f"{statistics.mean(group[a] for a in ATTRIBUTES):.3f}" for group in groups]
    shapes = [f"{group['shape']:.3f}" for group in groups]
    size = f"{row['parameters'] / 1e6:.2f} M | {row['batches']} | {row['seconds']:.0f} | {row['loss_v']:.4f}"
    return f"| {row['name']} | {size} | {' | '.join([*means, *shapes])} | {row['frechet']:.4f} |"


if __name__ == "__main__":
    main()

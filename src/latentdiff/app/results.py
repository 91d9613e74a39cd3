"""make results: every application of latent diffusion on the embedded data, trained, evaluated and put in one table.

    python -m latentdiff.app.results [EXPERIMENT ...] [KEY=VALUE ...]

Without names all of ``EXPERIMENTS``. They share one first stage, which is trained first where there is none. An
override goes to train.py; those of ``EVALUATION`` go to evaluate.py, those of ``BOTH`` to the two. What is complete is
not done again, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from latentdiff.app.demo import run
from latentdiff.checkpoint import store
from latentdiff.checkpoint.durable import new_file
from latentdiff.config.instantiate import load_config
from latentdiff.evaluation import summary

HOME = Path("outputs/results")
EXPERIMENTS = ("ldm_txt2img", "ldm_class", "ldm_uncond", "ldm_inpaint", "ldm_superres", "ldm_semantic")
EVALUATION = ("num_images", "batch_size", "bound", "metrics", "controls")
BOTH = ("trainer", "paths")

EXPLANATION = """\
shuffled: the same images against what was asked of others (chance). reconstructions: real images that only went through
the first stage, which no sample can pass. bicubic: the small images enlarged. Gaussian latents: latents drawn from a
Gaussian with the training set's moments at each place. training images: the distance of real images from the held-back
ones. Fréchet distances are those of the features that results.json names; none is a FID unless it says so.
"""


def main() -> None:
    names = [argument for argument in sys.argv[1:] if "=" not in argument] or list(EXPERIMENTS)
    overrides = [argument for argument in sys.argv[1:] if "=" in argument]
    for name in names:
        _train(name, [o for o in overrides if _key(o) not in EVALUATION])
    first = {}
    for name in names:
        stage_one = store.read_manifest(_last(name)).first_stage
        first.setdefault(stage_one["hash"], Path(stage_one["path"]))
    evaluation = [o for o in overrides if _key(o) in (*EVALUATION, *BOTH)]
    for number, path in enumerate(first.values()):
        # metrics are chosen for the applications, a first stage has its own
        _evaluate(path, _first_stage(number), [o for o in evaluation if _key(o) not in ("bound", "metrics")])
    for name in names:
        _evaluate(_last(name), HOME / name / "evaluation", evaluation)
    found = {f"first stage {i + 1}" if len(first) > 1 else "first stage": _first_stage(i) for i in range(len(first))}
    print(write(HOME, found | {name: HOME / name / "evaluation" for name in names}))


def write(home: Path, evaluations: dict[str, Path]) -> str:
    """``results.md`` and ``results.json`` from the results.json in each folder, by the model's name; the Markdown."""
    found = {name: json.loads((folder / "results.json").read_text()) for name, folder in evaluations.items()}
    text = "\n\n".join(
        [
            summary.table([row for name, one in found.items() for row in summary.rows(name, one)]),
            EXPLANATION.strip(),
            _protocols(found),
        ]
    )
    with new_file(home / "results.md") as staged:
        staged.write_text(text + "\n", encoding="utf-8")
    with new_file(home / "results.json") as staged:
        staged.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return f"{text}\n\nwritten: {home / 'results.md'}, {home / 'results.json'}"


def _protocols(found: dict[str, dict]) -> str:
    """How each model was trained and sampled, as a table in Markdown."""
    lines = ["| model | batches | training, min | images measured | sampling |", "|---|---:|---:|---:|---|"]
    for name, one in found.items():
        card = one["card"]
        model, made, path = card["model"], card["generation"], Path(card["model"]["checkpoint"])
        seconds = store.read_manifest(path).extra.get("seconds") if path.exists() else None
        sampling = ""
        if "sampler" in made:
            scale = made["guidance"].get("scale")
            sampling = f"{made['sampler']['name']}, {made['steps']} steps, {made['guidance']['name']}"
            sampling += "" if scale is None else f" {scale}"
        minutes = "" if seconds is None else f"{seconds / 60:.1f}"
        lines.append(f"| {name} | {model['batches_seen']} | {minutes} | {card['samples']['count']} | {sampling} |")
    return "\n".join(lines)


def _train(name: str, overrides: list[str]) -> None:
    if trained(HOME / name, overrides):
        print(f"{name}: trained already, {HOME / name}", flush=True)
        return
    run("train.py", f"experiment={name}", f"run_dir={HOME / name}", *overrides)


def trained(run_dir: Path, overrides: list[str]) -> bool:
    """Whether the run's last checkpoint has seen all batches: those wanted now, else those of its configuration."""
    last = run_dir / "checkpoints" / "last"
    if not (last / store.MANIFEST).is_file():
        return False
    wanted = [o.partition("=")[2] for o in overrides if _key(o) == "max_batches"]
    batches = int(wanted[-1]) if wanted else load_config(last / store.CONFIG).max_batches
    return store.read_manifest(last).counters["batches_seen"] >= batches


def _evaluate(checkpoint: Path, where: Path, overrides: list[str]) -> None:
    if evaluated(checkpoint, where, overrides):
        print(f"{checkpoint}: evaluated already, {where}", flush=True)
        return
    run("evaluate.py", f"checkpoint={checkpoint}", f"run_dir={where}", *overrides)
    (where / "overrides.json").write_text(json.dumps(overrides))


def evaluated(checkpoint: Path, where: Path, overrides: list[str]) -> bool:
    """Whether the results there are of this very checkpoint and were asked for with the same overrides."""
    files = where / "results.json", where / "overrides.json"
    if not all(file.is_file() for file in files):
        return False
    results, asked = (json.loads(file.read_text()) for file in files)
    return asked == overrides and results["card"]["model"]["digest"] == store.read_manifest(checkpoint).digest


def _key(override: str) -> str:
    """The root key of an override."""
    return override.partition("=")[0].lstrip("+~").partition(".")[0]


def _last(name: str) -> Path:
    return HOME / name / "checkpoints" / "last"


def _first_stage(number: int) -> Path:
    return HOME / f"first_stage_{number + 1}"


if __name__ == "__main__":
    main()

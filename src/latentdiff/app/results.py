"""make results: every application of latent diffusion on the embedded data, trained, evaluated and put in one table.

    python -m latentdiff.app.results [EXPERIMENT ...] [KEY=VALUE ...]

Without names all of ``EXPERIMENTS``. They share one first stage, which is trained first where there is none. An
override goes to train.py; those of ``EVALUATION`` go to evaluate.py, those of ``BOTH`` to the two. What is complete is
not done again, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

from latentdiff.app import schema
from latentdiff.app.demo import run
from latentdiff.app.evaluation.kept import remove_complete
from latentdiff.app.launch import find_configs
from latentdiff.app.run.preflight import kind_of
from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign import reading as foreign
from latentdiff.config.compose import compose
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import load_config
from latentdiff.durable import new_file
from latentdiff.evaluation import summary

HOME = Path("outputs/results")
EXPERIMENTS = ("ldm_txt2img", "ldm_class", "ldm_uncond", "ldm_inpaint", "ldm_superres", "ldm_semantic")
EVALUATION = ("num_images", "batch_size", "bound", "metrics", "controls")
BOTH = ("trainer", "paths", "sampler", "guidance")
OVERRIDES = "overrides.json"
"""Those that a run or an evaluation was asked for with."""

EXPLANATION = """\
shuffled: the same images against what was asked of others (chance). reconstructions: real images that only went through
the first stage, which no sample can pass. bicubic: the small images enlarged. Gaussian latents: latents drawn from a
Gaussian with the training set's moments at each place. training images: the distance of real images from the held-back
ones. Fréchet distances are those of the features that results.json names; none is a FID unless it says so.
"""


def main() -> int:
    """Exit code 2 for names or overrides that are at fault, before anything is trained."""
    parser = argparse.ArgumentParser(
        prog="make results", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("arguments", nargs="*", metavar="EXPERIMENT | KEY=VALUE")
    arguments = parser.parse_args().arguments
    names = [argument for argument in arguments if "=" not in argument] or list(EXPERIMENTS)
    try:
        make(names, [argument for argument in arguments if "=" in argument])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def make(names: list[str], overrides: list[str]) -> None:
    """Trains and evaluates what is not there yet, and writes the table of all ``names``."""
    training = [o for o in overrides if _key(o) not in EVALUATION]
    schema.register()
    for name in names:
        check(name, training)
    for name in names:
        _train(name, training)
    first = {}
    for name in names:
        stage_one = store.read_manifest(_last(name)).first_stage
        if foreign.recognises(stage_one["path"]):
            print(f"{name}: its first stage is another program's, which evaluate.py does not measure", flush=True)
        else:
            first.setdefault(stage_one["hash"], Path(stage_one["path"]))
    evaluation = [o for o in overrides if _key(o) in (*EVALUATION, *BOTH)]
    for number, path in enumerate(first.values()):
        # metrics and sampling are chosen for the applications, a first stage has its own
        own = [o for o in evaluation if _key(o) not in ("bound", "metrics", "sampler", "guidance")]
        _evaluate(path, _first_stage(number), own)
    for name in names:
        _evaluate(_last(name), HOME / name / "evaluation", evaluation)
    found = {f"first stage {i + 1}" if len(first) > 1 else "first stage": _first_stage(i) for i in range(len(first))}
    print(write(HOME, found | {name: HOME / name / "evaluation" for name in names}))


def check(name: str, overrides: list[str]) -> None:
    """Raises InputError unless ``name`` is an experiment of stage two, and where its run has other overrides."""
    cfg, faults = compose(find_configs("train"), "train", [f"experiment={name}", *overrides])
    if faults:
        raise InputError("; ".join(map(str, faults)))
    if kind_of(cfg) != "diffusion":
        raise InputError(f"'{name}' trains no second stage; name experiments like {', '.join(EXPERIMENTS)}")
    asked, begun = _asked(name), (HOME / name / store.CONFIG).is_file()
    if begun and asked.is_file() and (before := json.loads(asked.read_text())) != overrides:
        raise InputError(
            f"'{HOME / name}' was trained with {before or 'no overrides'}, now {overrides or 'none'} are given; remove "
            "the folder, or use the same"
        )


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
        model, protocol, path = card["model"], card["protocol"], Path(card["model"]["checkpoint"])
        made = protocol["generation"]
        seconds = store.read_manifest(path).extra.get("seconds") if path.exists() else None
        sampling = ""
        if "sampler" in made:
            scale = made["guidance"].get("scale")
            sampling = f"{made['sampler']['name']}, {made['steps']} steps, {made['guidance']['name']}"
            sampling += "" if scale is None else f" {scale}"
        minutes = "" if seconds is None else f"{seconds / 60:.1f}"
        lines.append(f"| {name} | {model['batches_seen']} | {minutes} | {protocol['samples']['count']} | {sampling} |")
    return "\n".join(lines)


def _train(name: str, overrides: list[str]) -> None:
    if trained(HOME / name):
        print(f"{name}: trained already, {HOME / name}", flush=True)
        return
    HOME.mkdir(parents=True, exist_ok=True)
    _asked(name).write_text(json.dumps(overrides))
    run("train.py", f"experiment={name}", f"run_dir={HOME / name}", *overrides)


def _asked(name: str) -> Path:
    """With what overrides an experiment's run was begun; beside its folder, which train.py makes."""
    return HOME / f"{name}.{OVERRIDES}"


def trained(run_dir: Path) -> bool:
    """Whether the run's last checkpoint has seen all batches of its configuration."""
    last = run_dir / "checkpoints" / "last"
    if not (last / store.MANIFEST).is_file():
        return False
    return store.read_manifest(last).counters["batches_seen"] >= load_config(last / store.CONFIG).max_batches


def _evaluate(checkpoint: Path, where: Path, overrides: list[str]) -> None:
    if evaluated(checkpoint, where, overrides):
        print(f"{checkpoint}: evaluated already, {where}", flush=True)
        return
    remove_complete(where)
    run("evaluate.py", f"checkpoint={checkpoint}", f"run_dir={where}", *overrides)
    (where / OVERRIDES).write_text(json.dumps(overrides))


def evaluated(checkpoint: Path, where: Path, overrides: list[str]) -> bool:
    """Whether the results there are of this very checkpoint and were asked for with the same overrides."""
    files = where / "results.json", where / OVERRIDES
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
    sys.exit(main())

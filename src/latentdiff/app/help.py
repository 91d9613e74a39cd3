"""``--help`` of train.py, evaluate.py and sample.py: made from the comments in ``configs/``, without torch or Hydra."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from latentdiff.app.yaml_comments import groups, options, root_keys, sentence
from latentdiff.config.errors import InputError
from latentdiff.config.faults import did_you_mean

WIDTH = 80
"""Characters of a line."""
COLUMN = 25
"""Where what is said of a name begins; further right where the name is longer."""

GROUPS = {
    "adversarial": "stage one: the discriminator and when it joins",
    "autoencoder": "stage one: the network and its bottleneck",
    "backbone": "stage two: the denoiser's network",
    "callbacks": "what watches a training: logs, grids, checkpoints",
    "classifier": "the network of experiment=classifier",
    "conditioner": "stage two: what it is told, and how",
    "data": "what is trained on or measured against",
    "debug": "makes any experiment small, to try it out",
    "diffusion": "stage two: path, prediction, law of t, loss weight",
    "experiment": "what is trained: choices from the other groups",
    "first_stage": "stage two: which first stage, found or trained",
    "guidance": "how sampling is led by the condition",
    "hydra": "how Hydra runs, logs and launches",
    "logger": "beside metrics.jsonl; several as [csv,wandb]",
    "metrics": "what evaluate.py measures",
    "optim": "optimiser and learning rate",
    "paths": "where data, outputs and first stages lie",
    "reconstruction": "stage one: the loss of what is reconstructed",
    "sampler": "solver, steps and their distribution",
    "task": "the parts of a training put together",
    "trainer": "devices, precision, and how they share the work",
}
"""A line for each folder of ``configs/``."""


@dataclass(frozen=True)
class Program:
    """What a program does, and how it is called."""

    does: str
    usage: str
    examples: tuple[str, ...]


PROGRAMS = {
    "train": Program(
        "trains one stage of a latent diffusion model, as an experiment says.",
        "experiment=NAME [group=option ...] [key=value ...]",
        (
            "experiment=ldm_txt2img",
            "experiment=ldm_txt2img optim.lr=1e-3 run_dir=outputs/mine",
            "experiment=ldm_txt2img data=webdataset data.train=data/mine",
            "experiment=ldm_txt2img debug=[tiny_unet,tiny_text]   # seconds",
            "-m experiment=ldm_txt2img optim.lr=1e-3,4e-3         # a sweep",
            "--from outputs/mine seed=1                           # again",
        ),
    ),
    "evaluate": Program(
        "measures a checkpoint of either stage, or images made elsewhere.",
        "checkpoint=PATH [key=value ...]",
        (
            "checkpoint=outputs/mine",
            "checkpoint=outputs/mine guidance.scale=1.5 sampler=dpmpp_2m",
            "checkpoint=outputs/mine sweep.guidance=[1,2,3]",
            "images=FOLDER data=webdataset data.train=data/mine",
        ),
    ),
    "sample": Program(
        "makes images with a checkpoint of stage two.",
        "checkpoint=PATH [prompt=TEXT] [key=value ...]",
        (
            'checkpoint=outputs/mine prompt="a red circle, left of a box"',
            'checkpoint=outputs/mine prompt="a ring" seeds=[7,8]',
            'checkpoint=outputs/mine prompt="a star" image=A.png',
        ),
    ),
}

OPTIONS = {
    "--help [GROUP]": "this text; with the name of a group, what its options are",
    "--cfg job": "print the configuration and stop; with --resolve as the program sees it",
    "-m": "several values, key=a,b, are a sweep: one job for each combination",
    "--from RUN_DIR": "the command of that run again, with the settings that follow changed",
    "--config-dir DIR": "take YAMLs of your own from there, beside those of configs/",
    "--shell-completion install=bash": "make the shell complete names, see docs/configs.md",
    "--hydra-help": "options of Hydra that are of use here less often",
}


def program_help(program: str, configs: Path) -> str:
    """All of it, in lines of at most ``WIDTH`` characters."""
    about = PROGRAMS[program]
    lines = [f"{program}.py: {about.does}", "", "Usage:", f"  python {program}.py {about.usage}", "", "Examples:"]
    lines += [f"  python {program}.py {example}" for example in about.examples]
    chosen = groups(configs, program)
    if "experiment" in chosen:
        lines += ["", "Experiments (numbers are published ones; --help experiment says more):"]
        for option in options(configs, "experiment"):
            said = sentence(configs / "experiment" / f"{option}.yaml")
            lines += _entry(option, _in_one_line(said))
    lines += ["", "Groups (group=option; --help GROUP says more of each option):"]
    for group in sorted(set(chosen) - {"experiment"}):
        lines += [*_entry(group, GROUPS.get(group, "")), *_wrapped(" ".join(options(configs, group)), COLUMN)]
    lines += ["", "Keys (key=value); --cfg job prints those of the groups too:"]
    for key in root_keys(configs / f"{program}.yaml"):
        lines += _entry(f"{key.name}={key.value}" if key.value else f"{key.name}:", key.comment)
    lines += ["", "Options:"]
    for option, does in OPTIONS.items():
        lines += _entry(option, does)
    return "\n".join(lines)


def group_help(group: str, configs: Path) -> str:
    """The options of a group with a line each. Raises InputError for one that is not there."""
    if group not in GROUPS or not (configs / group).is_dir():
        known = sorted(path.name for path in configs.iterdir() if path.is_dir())
        raise InputError(f"--help: there is no group '{group}'{did_you_mean(group, known)}")
    lines = [f"{group}: {GROUPS[group]}"]
    for option in options(configs, group):
        lines += _entry(option, sentence(configs / group / f"{option}.yaml"))
    return "\n".join(lines)


def _in_one_line(text: str) -> str:
    """As many of its clauses as fit beside a name."""
    ends = [match.start() for match in re.finditer(r"[,:;] | \(|$", text)]
    fitting = [end for end in ends if end <= WIDTH - COLUMN]
    return text[: max(fitting)] if fitting else textwrap.shorten(text, WIDTH - COLUMN, placeholder=" ...")


def _entry(name: str, text: str) -> list[str]:
    """``name`` and beside it, or below it where it is long, ``text``."""
    if len(name) + 4 > COLUMN:
        return [f"  {name}", *_wrapped(text, COLUMN)]
    lines = _wrapped(text, COLUMN) or [""]
    return [f"  {name:{COLUMN - 2}}{lines[0].strip()}".rstrip(), *lines[1:]]


def _wrapped(text: str, column: int) -> list[str]:
    indent = " " * column
    options = {"initial_indent": indent, "subsequent_indent": indent, "break_on_hyphens": False}
    return textwrap.wrap(text, WIDTH, **options)

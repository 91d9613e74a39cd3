"""The programs and their models in a notebook or another Python session.

run("python train.py experiment=ae_kl run_dir=runs/autoencoder")
pipeline = load("runs/ldm", "sampler.steps=10").pipeline
show(pipeline(Batch(keys=["one"], caption=["a red star"]), seeds=[0]))
"""

from __future__ import annotations

import io
import os
import shlex
import sys
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from unittest.mock import patch

from torch import Tensor

from latentdiff.app import build as make
from latentdiff.app import cli, launch, train
from latentdiff.app.composed import composed
from latentdiff.app.evaluation import evaluate
from latentdiff.app.generate import Generator, load_generator
from latentdiff.app.sampling import sample
from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError, RunError

PROGRAMS = {"train": train.run, "evaluate": evaluate.run, "sample": sample.run}

AS_TO_A_FILE = {"FORCE_COLOR": ""}
"""Jupyter sets it: rich would draw progress bars, one below the other."""


def run(command: str, *, quiet: bool = False) -> None:
    """A command as it is typed in a shell, in this process: ``python train.py ...``, ``latentdiff VERB ...``.

    It spares the seconds that a new process needs to import torch. What it prints appears here, where ``quiet`` its
    warnings and errors alone. Raises InputError for any other command, RunError where it ends with another exit code
    than 0, after it has said why.
    """
    said = redirect_stdout(io.StringIO()) if quiet else nullcontext()
    with patch("rich.console._is_jupyter", return_value=False), patch.dict(os.environ, AS_TO_A_FILE), said:
        _run(shlex.split(command))


def _run(words: list[str]) -> None:
    scripts = {f"{name}.py": name for name in PROGRAMS}
    if words[:1] == ["latentdiff"]:
        code = cli.main(words[1:])
    elif words[:1] == ["python"] and words[1:2] and words[1] in scripts:
        name = scripts[words[1]]
        script = launch.find_configs(name).parent / words[1]
        with patch.object(sys, "argv", [str(script), *words[2:]]):
            code = launch.run(PROGRAMS[name], name)
    else:
        raise InputError(
            f"expected 'python {'|'.join(scripts)} ...' or 'latentdiff VERB ...', got '{shlex.join(words)}'"
        )
    if code:
        raise RunError(f"'{' '.join(words[:2])}' ended with exit code {code}; see its message above")


def load(checkpoint: str, *settings: str) -> Generator:
    """A stage-two model that is ready to sample: its pipeline, its configuration and its codec's reconstructions.

    Args:
        checkpoint: a checkpoint or run directory.
        settings: of sample.py, e.g. ``"sampler.steps=10"`` or ``"guidance.scale=1.5"``.

    Raises:
        InputError: settings or checkpoint that sample.py would refuse.
    """
    cfg = composed("sample", [f"checkpoint={checkpoint}", *settings])
    path = store.resolve(cfg.checkpoint, prefer=("last", "best"))
    store.read_manifest(path, expect_kind="diffusion")
    return load_generator(cfg, path, *make.device(cfg.trainer))


def show(images: Tensor, captions: Sequence[str] = (), *, columns: int = 8, inches: float = 1.4) -> None:
    """Draws uint8 images (N, 3, H, W) in rows of ``columns``, ``inches`` wide each, under their captions if any."""
    import matplotlib.pyplot as plt

    rows = -(-len(images) // columns)
    height = inches + (0.7 if captions else 0.05)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * inches, rows * height), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image in zip(axes.flat, images.cpu()):
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    for axis, caption in zip(axes.flat, captions):
        axis.set_title("\n".join(textwrap.wrap(caption, round(15 * inches))[:4]), fontsize=8)
    figure.tight_layout(pad=0.2)
    plt.show()

"""A checkpoint with averaged weights of any length, made after training from snapshots of power-function averages."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentdiff.checkpoint import store
from latentdiff.checkpoint.models import EMA_PREFIX
from latentdiff.config.errors import InputError
from latentdiff.training.callbacks.ema_snapshots import FOLDER, read_snapshots
from latentdiff.training.power_ema import Profile, coefficients, gamma_of

PREFIX = "power_ema."
LARGEST_ERROR = 0.1
"""Of the profile: beyond it the snapshots are too few, or the length is too far from theirs."""


@dataclass(frozen=True)
class Reconstruction:
    """What was made, and how well the snapshots can say it."""

    path: Path
    length: float
    batches_seen: int
    snapshots: int
    profile_error: float
    """Distance between the profile reached and the one wanted, over the norm of the latter."""


def reconstruct(run_dir: str | Path, dest: str | Path, *, length: float) -> Reconstruction:
    """Writes a checkpoint to the new directory ``dest`` whose averaged weights are the power-function average of
    ``length`` (sigma_rel) at the time of the run's last checkpoint. All else is that checkpoint's, but training state.

    ``run_dir`` may also be a checkpoint directory of the run. Used are its snapshots up to that checkpoint. Raises
    InputError where there are none, where they cannot say this length within ``LARGEST_ERROR``, where a file is
    damaged, and where ``dest`` stands already.
    """
    gamma_of(length)
    dest = Path(dest)
    if os.path.lexists(dest):
        raise InputError(f"'{dest}' stands already and is not overwritten; name another place, or remove it")
    path = store.resolve(run_dir, prefer=("last", "best"))
    store.read_manifest(path, expect_kind="diffusion")
    manifest = store.verify(path)
    model = store.load_weights(path, "model")
    folder, updates = path.resolve().parent.parent / FOLDER, _updates(path, model)
    known = [snapshot for snapshot in read_snapshots(folder) if snapshot.updates <= updates]
    if not known:
        raise InputError(
            f"'{folder}' holds no snapshot from before '{path}'; name the run directory that it was made in"
        )
    given = [Profile.of(end=snapshot.updates, length=snapshot.length) for snapshot in known]
    x, error = coefficients(given, Profile.of(end=updates, length=length))
    if error > LARGEST_ERROR:
        near = " or ".join(f"{own:g}" for own in sorted({snapshot.length for snapshot in known}))
        raise InputError(
            f"length {length:g}: the {len(known)} snapshots give its profile with an error of {error:.0%}, "
            f"{LARGEST_ERROR:.0%} are allowed; choose a length nearer to {near}, or train with more snapshots "
            "(callbacks.ema_snapshots.count), or name the run that wrote the others"
        )
    ema = store.load_weights(path, "ema")
    ema |= _summed([folder / snapshot.weights for snapshot in known], x, ema)
    made = Reconstruction(dest, float(length), manifest.counters["batches_seen"], len(known), error)
    try:
        store.save(
            dest,
            kind=manifest.kind,
            model={name: value for name, value in model.items() if not name.startswith(PREFIX)},
            ema=ema,
            config=store.load_config(path),
            counters=manifest.counters,
            world_size=manifest.world_size,
            first_stage=manifest.first_stage,
            latent=manifest.latent,
            extra={"ema_length": made.length, "profile_error": error, "snapshots": made.snapshots},
        )
    except OSError as problem:
        raise InputError(f"'{dest}' cannot be written ({problem.strerror}); name another place") from problem
    return made


def _updates(path: Path, model: dict[str, Tensor]) -> int:
    """That the checkpoint had seen."""
    if PREFIX + "updates" not in model:
        raise InputError(
            f"'{path}' was trained without power-function averages; train with task.power_ema="
            "'{_target_: latentdiff.training.power_ema.PowerEma, _partial_: true}'"
        )
    return int(model[PREFIX + "updates"])


def _summed(files: list[Path], x: Tensor, ema: dict[str, Tensor]) -> dict[str, Tensor]:
    """The averaged parameters under their names in ``ema``, summed in float64 one by one."""
    summed = {}
    with ExitStack() as stack:
        opened = [_opened(file, stack) for file in files]
        for name in opened[0].keys():  # noqa: SIM118  it is no dictionary
            own = ema[EMA_PREFIX + name]
            total = torch.zeros(own.shape, dtype=torch.float64)
            for file, weight in zip(opened, x.tolist()):
                total += weight * file.get_tensor(name).double()
            summed[EMA_PREFIX + name] = total.to(own.dtype)
    return summed


def _opened(path: Path, stack: ExitStack) -> safe_open:
    try:
        return stack.enter_context(safe_open(path, framework="pt"))
    except (OSError, SafetensorError) as error:
        raise InputError(f"'{path}' cannot be read ({error}); it belongs to the run's snapshots") from error

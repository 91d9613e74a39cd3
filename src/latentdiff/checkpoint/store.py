"""A checkpoint is a directory that describes itself.

``model.safetensors``, ``ema.safetensors`` (may be absent), ``train_state.pt`` (may be absent; plain values and tensors,
loads with ``weights_only=True``), ``config.yaml`` (resolved), ``manifest.json`` (see ``Manifest``). It is written in a
``.tmp-*`` directory beside its place, flushed to disk, read again and renamed: at its place stands a complete
checkpoint or none.
"""

from __future__ import annotations

import errno
import pickle
import platform
import shutil
import time
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentdiff import __version__, durable
from latentdiff.checkpoint.lookup import BEST, LAST, kept, kept_name, resolve  # noqa: F401  as store.resolve
from latentdiff.checkpoint.manifest import KINDS, MANIFEST, WEIGHTS, Manifest, read_manifest
from latentdiff.config.errors import InputError

Part = Literal["model", "ema"]

CONFIG, TRAIN_STATE = "config.yaml", "train_state.pt"
COUNTERS = ("batches_seen", "images_seen")
REREAD_UP_TO = 10 * 2**30
"""Bytes of a checkpoint up to which the hashes are read again from disk after writing. Of a larger one the sizes are
compared: reading it twice would hold up training for minutes, and a resumed run compares the hashes anyway."""
_PLAIN = (str, bytes, int, float, bool, complex, type(None), Tensor, torch.Size, torch.dtype, torch.device)


def save(
    path: str | Path,
    *,
    kind: str,
    model: dict[str, Tensor],
    config: str,
    counters: dict[str, int],
    ema: dict[str, Tensor] | Path | None = None,
    train_state: dict | None = None,
    world_size: int = 1,
    first_stage: dict | None = None,
    latent: dict | None = None,
    data: dict | None = None,
    extra: dict | None = None,
    keep_as: Path | None = None,
) -> Manifest:
    """Write a checkpoint at ``path``; one that stands there is replaced once the new one is complete on disk, and
    moved to ``keep_as`` where that is given. ``ema`` may be another checkpoint's file, kept to the byte.

    Raises OSError when the disk refuses (what stood at ``path`` still stands) and TypeError when ``train_state``
    holds what would not load with ``weights_only=True``.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got '{kind}'")
    if set(counters) != set(COUNTERS):
        raise ValueError(f"counters must be {' and '.join(COUNTERS)}; got {sorted(counters)}")
    _refuse_objects(train_state, "train_state")
    with durable.new_directory(path, keep_as=keep_as, check=_check_written) as staged:
        manifest = Manifest(
            kind=kind,
            counters=counters,
            files=_write_files(staged, model, ema, train_state, config),
            world_size=world_size,
            first_stage=first_stage,
            latent=latent,
            versions={"latentdiff": __version__, "torch": torch.__version__, "python": platform.python_version()},
            data=data,
            saved_at=time.time(),
            extra=extra or {},
        )
        (staged / MANIFEST).write_text(manifest.text, encoding="utf-8")
    return manifest


def load_weights(path: str | Path, part: Part = "model", *, device: str = "cpu") -> dict[str, Tensor]:
    """The weights of the model or of its average; both have the same keys as the trained module."""
    file = _listed(path, WEIGHTS[part], f"it has no '{part}' weights; ask for 'model' instead")
    try:
        return load_file(file, device=device)
    except SafetensorError as error:
        raise InputError(f"'{file}' is damaged ({error}); use another checkpoint") from error


def load_train_state(path: str | Path, *, map_location: str = "cpu") -> dict:
    """Optimisers, counters, data position: what a resumed run needs beside the weights. Executes nothing."""
    file = _listed(path, TRAIN_STATE, "it was saved without training state and cannot be resumed from")
    try:
        return torch.load(file, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(f"'{file}' is damaged or holds more than plain values ({error}); use another one") from error


def load_config(path: str | Path) -> str:
    """The resolved configuration of the run that wrote the checkpoint, as YAML text."""
    return _listed(path, CONFIG, "it was saved without its configuration").read_text(encoding="utf-8")


def verify(path: str | Path, *, hashes: bool = True, from_disk: bool = False) -> Manifest:
    """Re-read every file and compare size and, unless ``hashes`` is off, sha256 with the manifest; all faults come in
    one InputError. ``from_disk``: as in ``durable.sha256``."""
    manifest = read_manifest(path)
    faults = []
    for name, entry in manifest.files.items():
        file = Path(path) / name
        if not file.is_file():
            faults.append(f"{name}: missing")
        elif (size := file.stat().st_size) != entry["size"]:
            faults.append(f"{name}: {entry['size']} bytes expected, {size} found")
        elif hashes and (sha := durable.sha256(file, from_disk=from_disk)) != entry["sha256"]:
            faults.append(f"{name}: sha256 {entry['sha256'][:16]}... expected, {sha[:16]}... found")
    if faults:
        raise InputError(
            f"checkpoint '{path}' is damaged ({'; '.join(faults)}); copy it again or use another checkpoint"
        )
    return manifest


def digest(path: str | Path) -> str:
    """Identity of the checkpoint's weights, from its manifest alone."""
    return read_manifest(path).digest


def write_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """A safetensors file. Raises OSError when the disk refuses."""
    try:
        save_file(tensors, file)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def write_values(values: dict, file: Path) -> None:
    """A file for ``torch.load(file, weights_only=True)``: plain values and tensors. Raises OSError when the disk
    refuses."""
    try:
        torch.save(values, file)
    except RuntimeError as error:  # so torch reports a write that failed
        raise OSError(str(error)) from error


def _check_written(folder: Path) -> None:
    """Reads again what was written; raises OSError where the disk holds something else."""
    try:
        size = sum(file.stat().st_size for file in folder.iterdir())
        verify(folder, hashes=size <= REREAD_UP_TO, from_disk=True)
    except InputError as error:
        raise OSError(errno.EIO, f"what was written cannot be read again: {error}") from error
    durable.passed("checked")


def _write_files(
    folder: Path, model: dict[str, Tensor], ema: dict[str, Tensor] | Path | None, train_state: dict | None, config: str
) -> dict[str, dict]:
    """Everything but the manifest; returns the manifest's ``files``."""
    durable.passed("begun")
    write_tensors(_storable(model), folder / WEIGHTS["model"])
    durable.passed("half written")
    if isinstance(ema, Path):
        shutil.copyfile(ema, folder / WEIGHTS["ema"])
    elif ema is not None:
        write_tensors(_storable(ema), folder / WEIGHTS["ema"])
    if train_state is not None:
        write_values(train_state, folder / TRAIN_STATE)
    (folder / CONFIG).write_text(config, encoding="utf-8")
    return {f.name: {"size": f.stat().st_size, "sha256": durable.sha256(f)} for f in sorted(folder.iterdir())}


def _listed(path: str | Path, name: str, absent: str) -> Path:
    entry = read_manifest(path).files.get(name)
    if entry is None:
        raise InputError(f"checkpoint '{path}': {absent}")
    file = Path(path) / name
    found = file.stat().st_size if file.is_file() else None
    if found != entry["size"]:
        state = "is missing" if found is None else f"is truncated or overwritten: {found} bytes found"
        raise InputError(f"'{file}' {state}, {entry['size']} bytes expected; copy it again or use another checkpoint")
    return file


def _storable(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and each with memory of its own: safetensors refuses tied tensors."""
    stored, seen = {}, set()
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return stored


def _refuse_objects(value: object, where: str) -> None:
    if type(value) in (dict, OrderedDict, Counter):
        for key, item in value.items():
            _refuse_objects(key, f"a key of {where}")
            _refuse_objects(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple, set):
        for position, item in enumerate(value):
            _refuse_objects(item, f"{where}[{position}]")
    elif type(value) not in (*_PLAIN, torch.nn.Parameter):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{where} is a {kind}; a checkpoint holds plain values and tensors only")

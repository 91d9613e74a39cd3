"""Weights that another program wrote: read without executing anything, and told apart by their names."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentdiff import durable
from latentdiff.config.errors import InputError

SAFE = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")

_NAMED_ONLY = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)
"""Classes that Lightning before 1.5 used as keys beside the weights (Stable Diffusion 1's .ckpt): an empty one stands
in for them, so that nothing of theirs is imported or called."""


class _StandIn:
    """Takes the place of a class that a pickle only names."""


DAMAGED = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    AssertionError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
)
"""What unpickling has been seen to end in where bytes are missing or changed."""


@dataclass(frozen=True)
class WeightsFile:
    """A file of tensors; ``load`` reads the named ones, on the CPU."""

    path: Path
    names: frozenset[str]
    load: Callable[[Collection[str]], dict[str, Tensor]]
    metadata: dict[str, str]
    """What a .safetensors file says beside its tensors."""


@dataclass(frozen=True)
class Contents:
    """What a .safetensors file is to hold, and what its reader should know."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    notes: list[str]

    def write(self, dest: Path) -> list[str]:
        """Writes the new file ``dest``; returns the notes."""
        check_file_name(dest)
        with durable.new_file(dest) as staged:
            save_file({name: value.contiguous() for name, value in self.tensors.items()}, staged, self.metadata)
        return self.notes


def check_file_name(dest: Path) -> None:
    """Raises InputError where ``dest`` does not end as the files do that are written."""
    if dest.suffix != SAFE:
        raise InputError(f"'{dest}': LDM's layout is written as a {SAFE} file; give it a name that ends so")


def open_weights(path: Path) -> WeightsFile:
    """The tensors of a .safetensors file or of a pickle, which is read with ``weights_only=True``.

    A pickle's tensors are those of its 'state_dict' where it has one. Raises InputError for other kinds of files, for
    damaged ones, and for pickles with objects in them.
    """
    if path.suffix == SAFE:
        return _open_safetensors(path)
    if path.suffix in PICKLES:
        return _open_pickle(path)
    raise InputError(
        f"'{path}' is a file of no known kind; expected a checkpoint directory, a {SAFE} file, a pickle "
        f"({', '.join(PICKLES)}) or a diffusers folder"
    )


def check_names(wanted: Collection[str], found: Collection[str], path: Path, what: str = "the autoencoder") -> None:
    """Raises InputError where names are missing or surplus, with their counts and the first few of each."""
    faults = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:4])}{', ...' if len(names) > 4 else ''})"
        for what, names in (("missing", set(wanted) - set(found)), ("surplus", set(found) - set(wanted)))
        if names
    ]
    if faults:
        raise InputError(
            f"the tensors in '{path}' are not those of {what} that it describes: {'; '.join(faults)}; "
            "use a complete file"
        )


def _open_safetensors(path: Path) -> WeightsFile:
    def load(names: Collection[str]) -> dict[str, Tensor]:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}

    try:
        with safe_open(path, framework="pt") as file:
            return WeightsFile(path, frozenset(file.keys()), load, dict(file.metadata() or {}))
    except (SafetensorError, OSError) as error:
        raise InputError(f"'{path}' cannot be read as safetensors ({error}); copy it again or use another") from error


def _open_pickle(path: Path) -> WeightsFile:
    tensors = _unpickle(path)
    tensors = tensors.get("state_dict", tensors) if isinstance(tensors, dict) else tensors
    if not isinstance(tensors, dict) or not tensors:
        raise InputError(f"'{path}' holds no weights: expected a dict of tensors, got {type(tensors).__name__}")
    tensors = {str(name): value for name, value in tensors.items() if isinstance(value, Tensor)}
    return WeightsFile(path, frozenset(tensors), lambda names: {name: tensors[name] for name in names}, {})


def _unpickle(path: Path) -> object:
    stand_ins = [(_StandIn, name) for name in _NAMED_ONLY]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if not (names := _unsafe_globals(path, str(error))):
            raise InputError(f"'{path}' cannot be read as a pickle of tensors ({_brief(error)})") from error
        raise InputError(
            f"'{path}' holds more than tensors: {', '.join(names)}. Loading it would run its code, so it is refused. "
            f"Look for its {SAFE} file; or, where you trust it, convert it once: torch.load(path, weights_only=False), "
            f"then safetensors.torch.save_file of its tensors"
        ) from error
    except DAMAGED as error:
        raise InputError(f"'{path}' is damaged ({_brief(error)}); copy it again or use another") from error


def _unsafe_globals(path: Path, message: str) -> list[str]:
    """What the pickle would call: by taking it apart, or, in torch's format before 1.6, from the refusal."""
    if zipfile.is_zipfile(path):
        try:
            return sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - set(_NAMED_ONLY))
        except (pickle.UnpicklingError, *DAMAGED):
            return []
    return re.findall(r"GLOBAL ([\w.]+)", message)[:1]


def _brief(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Shapes:
    """Shapes of tensors by name, in a message's words those of ``what`` ("a UNet")."""

    def __init__(self, weights: Mapping[str, Tensor], path: Path, what: str) -> None:
        self.weights, self.path, self.what = weights, path, what

    def __call__(self, name: str) -> torch.Size:
        """The shape of a tensor of at least two axes. Raises InputError where there is none."""
        if name not in self.weights:
            raise InputError(
                f"the tensors in '{self.path}' are not those of {self.what}: 1 missing ({name}); use a complete file"
            )
        if (shape := self.weights[name].shape) and len(shape) >= 2:
            return shape
        what = self.what.partition(" ")[2]
        raise InputError(f"'{self.path}': {name} has shape {tuple(shape)}, which no {what} has")

    def number(self, pattern: str) -> int:
        """How many names there are with 0, 1, 2, ... in the pattern's place."""
        return next(i for i in count() if pattern.format(i) not in self.weights)

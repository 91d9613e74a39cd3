"""Weights of frozen networks: from files, without executing anything, and told apart by their hash."""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from latentdiff.config.errors import InputError

DAMAGED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    OverflowError,
)
"""What unpickling has been seen to end in where bytes are missing or changed, or where there is more than tensors."""


LINES, LINE = 4, 160
"""Of a message that is cut: lines, and characters of each."""


def read_weights(path: str | Path, *, what: str, remedy: str) -> dict[str, Tensor]:
    """The tensors of a file that ``torch.save`` wrote, on the CPU.

    Args:
        what: whose weights they are, for the messages; likewise ``remedy``, what to do.

    Raises:
        InputError: there is no such file, it is damaged, or it holds anything but tensors by name.
    """
    if not Path(path).is_file():
        raise InputError(f"weights of {what} '{path}' not found; {remedy}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise InputError(
            f"'{path}' does not hold the weights of {what}: it is damaged ({type(error).__name__}), or holds more than "
            f"tensors, whose loading would run its code; {remedy}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"'{path}' does not hold the weights of {what}: expected tensors by name; {remedy}")
    return state


def load_weights(network: nn.Module, state: dict[str, Tensor], path: str | Path, *, what: str, remedy: str) -> None:
    """Into the network, all of them. Raises InputError where names or shapes differ."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"'{path}' does not hold the weights of {what} ({in_short(error)}); {remedy}") from error


def in_short(error: Exception) -> str:
    """The message of an error, without the long lists of ``load_state_dict``: its first lines, each cut."""
    lines = [line.strip() for line in str(error).splitlines()]
    shown = [line if len(line) <= LINE else f"{line[:LINE]} ..." for line in lines[:LINES]]
    return " ".join([*shown, "..."] if len(lines) > LINES else shown)


def tensors_sha256(network: nn.Module) -> str:
    """Of all its tensors by name, whatever files they came from; hexadecimal."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()

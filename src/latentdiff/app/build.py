"""The Lightning trainer and the data of a configuration."""

from __future__ import annotations

import sys

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from latentdiff.app.processes import check_count
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.nn.precision import computes_in_bf16
from latentdiff.training.callbacks.validation import ValidateLast
from latentdiff.training.checkpoint_io import DirectoryCheckpointIO

PRECISIONS = ("bf16-mixed", "32-true")


def precision(choice: str, accelerator: str) -> str:
    """``auto`` becomes bf16-mixed where the hardware computes in bfloat16, else 32-true.

    Raises InputError for any other: float16 would clip scaled gradients, bf16-true would average in bfloat16.
    """
    if choice in PRECISIONS:
        return str(choice)
    if choice != "auto":
        raise InputError(f"trainer.precision: expected auto, {' or '.join(PRECISIONS)}, got {choice!r}")
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if computes_in_bf16("cuda" if on_gpu else "cpu") else "32-true"


def autocast_dtype(choice: str, accelerator: str) -> torch.dtype | None:
    """The dtype of autocast that a precision stands for, None for float32."""
    return torch.bfloat16 if precision(choice, accelerator) == "bf16-mixed" else None


def trainer(cfg: DictConfig, files: DirectoryCheckpointIO) -> pl.Trainer:
    """The trainer with its callbacks and loggers; ``files`` writes and reads its checkpoints.

    Raises InputError for what Lightning refuses here, a device that is not there, a logger that is not installed, and
    where a launcher started another number of processes.
    """
    check_count(world_size(cfg))
    node = OmegaConf.create(OmegaConf.to_container(cfg.trainer, resolve=True))
    node.precision = precision(node.precision, node.accelerator)
    terminal = sys.stdout.isatty()
    callbacks = [build(callback) for callback in cfg.callbacks.values() if callback is not None]
    for callback in callbacks:
        if hasattr(callback, "echo"):
            callback.echo = callback.echo or not terminal
    callbacks.append(ValidateLast(total=cfg.max_batches))
    if terminal:
        callbacks.append(RichProgressBar())
    try:
        return build(
            node,
            inject={
                "callbacks": callbacks,
                "logger": [build(logger) for logger in (cfg.logger or {}).values() if logger is not None],
                "plugins": [files],
                "enable_progress_bar": terminal,
                "default_root_dir": str(cfg.run_dir),
            },
        )
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise InputError(f"trainer or logger: {error}") from error


def world_size(cfg: DictConfig) -> int:
    """Processes that the configuration asks for."""
    return processes(cfg.trainer)


def processes(trainer_node: DictConfig) -> int:
    """The same of a trainer's configuration."""
    devices = trainer_node.devices
    if devices == -1 or devices == "auto":
        devices = max(1, torch.cuda.device_count()) if trainer_node.accelerator in ("auto", "gpu", "cuda") else 1
    count = _count(devices)
    return count * trainer_node.get("num_nodes", 1)


def _count(devices: object) -> int:
    """Of ``trainer.devices``: a number, or a list of devices; either also as Lightning reads it from a text."""
    if isinstance(devices, str):
        listed = [each.strip() for each in devices.split(",") if each.strip()]
        if not listed or not all(each.isdecimal() for each in listed):
            raise InputError(
                f"trainer.devices: expected auto, a number of devices or a list of their indices, got '{devices}'"
            )
        return len(listed) if "," in devices else int(devices)
    return devices if isinstance(devices, int) else len(devices)


def device_name(trainer_node: DictConfig) -> str:
    """``cuda`` or ``cpu``: where the trainer's work is done."""
    on_gpu = trainer_node.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "cuda" if on_gpu else "cpu"


def device(trainer_node: DictConfig) -> tuple[torch.device, torch.dtype | None]:
    """Device and autocast dtype of a program that runs in one process without a trainer."""
    if trainer_node.devices != 1:
        raise InputError("trainer: this program runs in one process; use trainer=auto, cpu or gpu")
    accelerator = trainer_node.accelerator
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise InputError("trainer: 'gpu' was asked for, but torch sees no CUDA device; use trainer=cpu")
    return torch.device(device_name(trainer_node)), autocast_dtype(trainer_node.precision, accelerator)

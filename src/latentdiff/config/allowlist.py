"""Which objects a configuration may name in ``_target_``.

A configuration may come from a stranger's checkpoint, so that a target is refused by its name before anything is
imported, and again by where the object it names was defined: a module's own imports (``...shards.os.system``) are
no way around the list. Only classes are targets: functions write files and start programs, and methods such as
``load_from_checkpoint`` unpickle.

The user may trust further packages by naming them in the environment variable ``LATENTDIFF_PLUGINS``, which no
configuration can set. To import one of them is to run its code.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable
from types import ModuleType

from latentdiff.config.errors import InputError
from latentdiff.config.faults import did_you_mean

ALLOWED = (
    "latentdiff.",
    "torch.optim.",
    "torch.nn.",
    "pytorch_lightning.Trainer",
    "pytorch_lightning.callbacks.",
    "pytorch_lightning.loggers.",
    "pytorch_lightning.strategies.",
    "pytorch_lightning.plugins.",
    "pytorch_lightning.profilers.",
    "pytorch_lightning.accelerators.",
)
"""What a target's name may begin with. Not torchmetrics: its Inception distance unpickles the file it is given."""

REFUSED = ("latentdiff.app.", "latentdiff.config.", "torch.nn.utils.")
"""Programs and the machinery of configurations are no parts."""

ORIGINS = (*ALLOWED, "pytorch_lightning.trainer.", "lightning_fabric.plugins.")
"""Modules that may have defined the object; Lightning re-exports some of fabric's plugins."""

PLUGINS = "LATENTDIFF_PLUGINS"
"""Packages and modules outside latentdiff whose classes may be named too, comma-separated."""

_DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")
_LISTED = frozenset(prefix.partition(".")[0] for prefix in ORIGINS)
"""Packages of which the lists above let a part in; naming them as plugins must not let in the rest."""

_REQUIRED = (
    "test pip setuptools pkg_resources torchvision hydra omegaconf webdataset braceexpand wandb open_clip torchmetrics "
    "safetensors numpy PIL simplejpeg rich matplotlib torch_fidelity transformers sentencepiece google fsspec "
    "s3fs gcsfs huggingface_hub pyarrow datasets optuna hydra_plugins shtab gradio diffusers"
)
"""What comes with Python or as a requirement of latentdiff: classes there were not written as parts, and some unpickle
or run what they are given."""


def resolve(target: object) -> Callable[..., object]:
    """The class that ``target`` names, ``module.Name``.

    Raises:
        InputError: not on the list, not importable, not there (with the nearest name), or defined elsewhere; a fault
            in ``LATENTDIFF_PLUGINS``.
    """
    check_name(target)
    assert isinstance(target, str)
    module_name, _, name = target.rpartition(".")
    module = _import(module_name, target)
    try:
        found = getattr(module, name)
    except AttributeError as error:
        near = did_you_mean(name, [n for n in vars(module) if n[0] != "_"])
        raise InputError(f"'{target}' does not exist: '{module_name}' has no '{name}'{near}") from error
    _check_origin(found, target)
    return found


def check_name(target: object) -> None:
    """Refuse a target by its name alone, importing nothing."""
    if not isinstance(target, str) or not _DOTTED.fullmatch(target):
        raise InputError(f"_target_ must be 'module.Name' (public names only), got {target!r}")
    if target.startswith(REFUSED) or not (target.startswith(ALLOWED) or target.startswith(_plugins())):
        allowed = ", ".join(prefix.rstrip(".") for prefix in ALLOWED + _plugins())
        hint = _hint(target.partition(".")[0])
        raise InputError(f"'{target}' may not be built from a configuration; allowed are parts of {allowed}{hint}")


def _plugins() -> tuple[str, ...]:
    """What else a target's name may begin with.

    Raises InputError for a name that is none, of the standard library, of a package that has its own list here, or of
    one that latentdiff requires.
    """
    names = [name.strip() for name in os.environ.get(PLUGINS, "").split(",") if name.strip()]
    for name in names:
        if not _trustable(name.partition(".")[0]) or not _DOTTED.fullmatch(f"{name}.Name"):
            raise InputError(
                f"{PLUGINS}: expected names of packages or modules of your own, comma-separated, got '{name}'; the "
                f"standard library, {', '.join(sorted(_LISTED))} and what latentdiff requires cannot be opened"
            )
    return tuple(f"{name}." for name in names)


def _trustable(package: str) -> bool:
    return package not in (*_LISTED, *_REQUIRED.split()) and package not in sys.stdlib_module_names


def _hint(package: str) -> str:
    """What would let in a class of ``package``, where anything would."""
    if not _trustable(package):
        return ""
    names = ",".join([*(name.rstrip(".") for name in _plugins()), package])
    return f"; if you trust the code of '{package}', allow it with the environment variable {PLUGINS}={names}"


def _import(name: str, target: str) -> ModuleType:
    if not target.startswith(ALLOWED):
        _look_here(name.partition(".")[0])
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise InputError(f"'{target}' needs '{error.name}', which is not installed") from error
        parent, _, missing = error.name.rpartition(".")
        absent = f"; install it, put its folder on PYTHONPATH, or run in that folder ({PLUGINS} names it)"
        near = did_you_mean(missing, _submodules(parent)) if parent else absent
        raise InputError(f"'{target}' does not exist: there is no module '{error.name}'{near}") from error
    except ImportError as error:
        raise InputError(f"'{target}' cannot be imported: {error}") from error


def _look_here(package: str) -> None:
    """Puts the current directory on ``sys.path`` where it alone has the plugin: last, so that what lies there hides no
    installed package."""
    here = os.getcwd()
    if here in sys.path or package in sys.modules or importlib.util.find_spec(package) is not None:
        return
    sys.path.append(here)
    if importlib.util.find_spec(package) is None:
        sys.path.remove(here)


def _submodules(package: str) -> list[str]:
    paths = getattr(importlib.import_module(package), "__path__", [])
    return [module.name for module in pkgutil.iter_modules(paths)]


def _check_origin(found: object, target: str) -> None:
    if not inspect.isclass(found):
        raise InputError(f"'{target}' is no class but {type(found).__name__}; a configuration builds classes only")
    home = f"{found.__module__}."
    if home.startswith(REFUSED) or not (home.startswith(ORIGINS) or home.startswith(_plugins())):
        raise InputError(f"'{target}' may not be built from a configuration: it comes from '{found.__module__}'")

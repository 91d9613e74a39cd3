"""Freezing a pretrained part inside a module that trains."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def freeze(module: M) -> M:
    """Puts ``module`` in eval mode for good, without gradients and outside its parents' checkpoints; returns it.

    - ``train()`` on it or on a parent leaves it in eval mode;
    - its tensors are absent from a parent's ``state_dict()``, and loading such a dictionary into the parent stays
      strict (tensors that are there all the same are loaded);
    - its own ``state_dict()`` is complete.

    Freezing twice is freezing once.
    """
    module.requires_grad_(False)
    if is_frozen(module):
        return module
    module.eval()
    module.train = partial(_stay_in_eval, module)  # type: ignore[method-assign]
    module.register_state_dict_post_hook(_leave_out)
    module.register_load_state_dict_pre_hook(_keep_own)
    return module


def is_frozen(module: nn.Module) -> bool:
    train = module.__dict__.get("train")
    return isinstance(train, partial) and train.func is _stay_in_eval


def _stay_in_eval(module: M, mode: bool = True) -> M:
    return module


def _leave_out(module: nn.Module, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    if prefix:
        for key in [k for k in state_dict if k.startswith(prefix)]:
            del state_dict[key]


def _keep_own(module: nn.Module, state_dict: dict, prefix: str, *_: object) -> None:
    if prefix:
        for key, tensor in module.state_dict().items():
            state_dict.setdefault(prefix + key, tensor)

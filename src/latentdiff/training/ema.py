"""Exponential moving average of the trained weights, as a submodule that is saved and resumed like any other."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema(nn.Module):
    """A float32 copy of ``model`` that follows it: ``shadow <- decay shadow + (1 - decay) weights``.

    The decay warms up as ``min(decay, (1 + n) / (10 + n))`` over the n updates so far, so that short runs are not
    held back by the initial weights. Frozen submodules (see ``nn.freeze``) are shared, not copied.

    Args:
        model: what is trained; its present weights are the first average.
        decay: final decay in [0, 1).
    """

    def __init__(self, model: nn.Module, *, decay: float):
        super().__init__()
        self.decay = decay
        self.model = copy.deepcopy(model, _frozen_parts(model)).requires_grad_(False).eval()
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._count = 0
        self.register_load_state_dict_post_hook(_recount)

    def train(self, mode: bool = True) -> Ema:
        return self

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Called once after every update of ``model``."""
        decay = min(self.decay, (1 + self._count) / (10 + self._count))
        self._count += 1
        self.updates.fill_(self._count)
        trained = [p for p in model.parameters() if p.requires_grad]
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        own = dict(self.model.named_parameters())
        torch._foreach_lerp_([own[name] for name in names], trained, 1.0 - decay)
        buffers = dict(model.named_buffers())
        for name, buffer in self.model.named_buffers():
            if buffer is not buffers[name]:
                buffer.copy_(buffers[name])


def _recount(ema: Ema, _: object) -> None:
    """The count is kept outside the buffer too, where reading it does not wait for a GPU."""
    ema._count = int(ema.updates)


def _frozen_parts(model: nn.Module) -> dict[int, nn.Module]:
    """A deepcopy memo that shares every submodule none of whose parameters is trained."""
    memo = {}
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            memo[id(module)] = module
    return memo

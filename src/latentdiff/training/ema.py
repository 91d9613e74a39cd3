"""Exponential moving average of the trained weights, as a submodule that is saved and resumed like any other."""

from __future__ import annotations

import copy

import torch
from torch import nn

from latentdiff.training.parallel import local


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
        self.model = shadow_of(model)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._count = 0
        self._pairs = Pairs()
        self.register_load_state_dict_post_hook(_recount)

    def train(self, mode: bool = True) -> Ema:
        return self

    def update(self, model: nn.Module) -> None:
        """Called once after every update of ``model``."""
        decay = min(self.decay, (1 + self._count) / (10 + self._count))
        self._count += 1
        self.updates.fill_(self._count)
        self._pairs.move(self.model, model, 1.0 - decay)

    def restart(self, model: nn.Module) -> None:
        """Makes the present weights of ``model`` the first average again."""
        self._count = 0
        self.updates.zero_()
        self._pairs.move(self.model, model, 1.0)


class Pairs:
    """The tensors of a shadow beside those of the model that it follows.

    Walking a large model costs as much as averaging it, so the owners of the tensors are found once. The tensors are
    read from their owners at every move: one that was replaced, moved to a device or frozen meanwhile is noticed.
    Submodules may not come or go.
    """

    def __init__(self) -> None:
        self._of: tuple[nn.Module, nn.Module] | None = None
        self._parameters: list[tuple[dict, dict, str]] = []
        self._buffers: list[tuple[dict, dict, str]] = []

    def __reduce__(self) -> tuple:
        """A copy finds its own."""
        return (Pairs, ())

    @torch.no_grad()
    def move(self, shadow: nn.Module, model: nn.Module, weight: float) -> None:
        """``shadow <- shadow + weight (model - shadow)`` on trained parameters; buffers are copied."""
        if self._of is None or self._of[0] is not shadow or self._of[1] is not model:
            self._find(shadow, model)
        trained = [(own[name], other[name]) for own, other, name in self._parameters if other[name].requires_grad]
        if trained:
            own, other = zip(*trained)
            torch._foreach_lerp_([local(t) for t in own], [local(t) for t in other], weight)
        for own, other, name in self._buffers:
            own[name].copy_(other[name])

    def _find(self, shadow: nn.Module, model: nn.Module) -> None:
        self._of, self._parameters, self._buffers = (shadow, model), [], []
        owners, seen = dict(shadow.named_modules()), set()
        for path, module in model.named_modules():
            if owners[path] is module:  # frozen, shared
                continue
            for kind, found in (("_parameters", self._parameters), ("_buffers", self._buffers)):
                own, other = getattr(owners[path], kind), getattr(module, kind)
                for name, tensor in other.items():
                    if tensor is not None and id(tensor) not in seen:  # a tied one moves once
                        seen.add(id(tensor))
                        found.append((own, other, name))


def shadow_of(model: nn.Module) -> nn.Module:
    """A copy that never trains and has no gradients; submodules none of whose parameters is trained are shared."""
    return copy.deepcopy(model, _frozen_parts(model)).requires_grad_(False).eval()


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

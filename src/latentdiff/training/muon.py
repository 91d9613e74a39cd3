"""Muon: momentum made orthogonal, for a network's matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from latentdiff.config.errors import InputError
from latentdiff.nn.precision import computes_in_bf16
from latentdiff.training.parallel import split_like, whole

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration: singular values of 0.002 to 1 end in about [0.7, 1.2] after five rounds."""

MATCHED_RMS = 0.2
"""Root mean square of an update's elements, about AdamW's: one learning rate serves both (arXiv:2502.16982, eq. 4)."""


class Muon(Optimizer):
    """Matrices move by ``lr * 0.2 sqrt(max(rows, columns)) * U V^T`` of their Nesterov momentum, the rest by AdamW.

    Convolutions count as matrices (out, in * height * width). Vectors, scalars and the parameters named in ``adamw``
    are left to AdamW: Muon is not meant for embeddings nor for a network's first and last layer. What it gains
    on the embedded data stands in docs/benchmarks.md.

    Args:
        params: named parameters, (name, tensor) pairs.
        lr: learning rate of both.
        momentum: of the matrices' gradient.
        betas, eps: of AdamW.
        weight_decay: decoupled, of both.
        adamw: names, with ``*``, of matrices that AdamW shall move.

    Raises InputError where ``params`` have no names or a setting is out of range.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        *,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: Sequence[float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adamw: Sequence[str] = (),
    ):
        named = list(params)
        if not all(isinstance(pair, tuple) for pair in named):
            raise InputError("Muon: expected named parameters, (name, tensor) pairs: it chooses among them by name")
        if lr < 0 or weight_decay < 0 or not 0 <= momentum < 1 or not all(0 <= beta < 1 for beta in betas):
            raise InputError(
                "Muon: expected lr >= 0, weight_decay >= 0, momentum and betas in [0, 1); "
                f"got lr={lr}, weight_decay={weight_decay}, momentum={momentum}, betas={tuple(betas)}"
            )
        matrices, rest = [], []
        for name, p in named:
            plain = p.ndim < 2 or any(fnmatch(name, pattern) for pattern in adamw)
            (rest if plain else matrices).append((name, p))
        groups = [{"params": part, "orthogonal": part is matrices} for part in (matrices, rest) if part]
        defaults = {"lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._step_orthogonal if group["orthogonal"] else self._step_adamw)(group, params)
        return loss

    def _step_orthogonal(self, group: dict, params: list[Tensor]) -> None:
        """Matrices of one shape are made orthogonal together; sharded ones are gathered for it, on every rank."""
        by_shape: dict[tuple, list[Tensor]] = defaultdict(list)
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            by_shape[(len(p), p[:1].numel()), p.device].append(p)
        for (shape, _), alike in by_shape.items():
            momenta = [self.state[p]["momentum"] for p in alike]
            grads = [p.grad for p in alike]
            torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
            nesterov = torch._foreach_lerp(grads, momenta, group["momentum"])
            updates = orthogonalize(torch.stack([whole(u).flatten(1) for u in nesterov]))
            scale = MATCHED_RMS * max(shape) ** 0.5
            torch._foreach_mul_(alike, 1 - group["lr"] * group["weight_decay"])
            updates = [split_like(u.view(p.shape), p) for u, p in zip(updates, alike)]
            torch._foreach_add_(alike, updates, alpha=-group["lr"] * scale)

    def _step_adamw(self, group: dict, params: list[Tensor]) -> None:
        for p in params:
            if "step" not in self.state[p]:
                self.state[p] |= {
                    "step": torch.zeros((), device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
            self.state[p]["step"] = self.state[p]["step"].to(p.device)  # loading a state leaves it on the CPU
        adamw(
            params,
            [p.grad for p in params],
            [self.state[p]["exp_avg"] for p in params],
            [self.state[p]["exp_avg_sq"] for p in params],
            [],
            [self.state[p]["step"] for p in params],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalize(matrices: Tensor, rounds: int = 5) -> Tensor:
    """(N, m, n) = U S V^T each -> about U V^T, its nearest semi-orthogonal matrix, in the same dtype.

    Newton-Schulz iteration, in bfloat16 where the hardware has it: the singular values need not be exact.
    """
    a, b, c = NEWTON_SCHULZ
    exact = matrices.dtype is torch.float64 or not computes_in_bf16(matrices.device.type)
    x = matrices if exact else matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)

"""Numbers that outlive a batch: plain Python floats while training, a tensor in the checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Memory(nn.Module):
    """Named floats that are saved and resumed like weights.

    They live outside the tensor while training, so that reading them never waits for a GPU and adding to them launches
    nothing there; the tensor is written when the state is asked for. They must be equal on all ranks.
    """

    saved: Tensor

    def __init__(self, values: dict[str, float]):
        super().__init__()
        self.values = dict(values)
        self.register_buffer("saved", torch.tensor(list(values.values()), dtype=torch.float64))
        self.register_state_dict_pre_hook(_write)
        self.register_load_state_dict_post_hook(_read)


def _write(memory: Memory, *_: object) -> None:
    memory.saved.copy_(torch.tensor(list(memory.values.values()), dtype=torch.float64, device="cpu"))


def _read(memory: Memory, _: object) -> None:
    memory.values = dict(zip(memory.values, memory.saved.tolist()))

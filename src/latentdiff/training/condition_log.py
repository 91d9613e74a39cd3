"""What became of the condition in training: how often each part was dropped, how many captions were too long."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ConditionLog(nn.Module):
    """Shares and counts over all samples that the run has trained on, to be held against the drop asked for.

    The state is kept on the host and saved with the weights, so that a resumed run goes on with it.
    """

    def __init__(self, *, parts: Sequence[str]):
        """``parts``: of the conditioner, see ``types.Conditioner``."""
        super().__init__()
        self.parts = tuple(parts)
        self.samples, self.cut = 0.0, 0.0
        self.dropped = [0.0] * len(self.parts)
        self.register_load_state_dict_pre_hook(_start_without)

    def update(self, shares: Sequence[float], cut: float, samples: int) -> dict[str, float]:
        """Of one batch of so many ``samples``: the share that lost each part, and the captions that were ``cut`` ->
        ``dropped/PART`` and ``captions_cut`` so far."""
        self.samples += samples
        self.cut += cut
        self.dropped = [total + share * samples for total, share in zip(self.dropped, shares)]
        rates = {f"dropped/{name}": total / self.samples for name, total in zip(self.parts, self.dropped)}
        return {**rates, "captions_cut": self.cut}

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.samples, self.cut, *self.dropped], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.samples, self.cut, *self.dropped = state.tolist()


def _start_without(part: ConditionLog, state_dict: dict, prefix: str, *_: object) -> None:
    """A checkpoint of before there was this log: it starts anew."""
    state_dict.setdefault(prefix + "_extra_state", ConditionLog(parts=part.parts).get_extra_state())

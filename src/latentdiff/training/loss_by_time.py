"""The loss in each quarter of t, and a validation loss that runs with other paths, weights and laws of t share."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentdiff.diffusion.coefficients import at_least_float32, per_sample
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.noise import seeded_noise
from latentdiff.training.tally import in_bins
from latentdiff.types import Conditioning

QUARTERS = 4


def quarters(t: Tensor) -> Tensor:
    """The quarter of [0, 1] that each t (B,) lies in: int64, 0 nearest to the data."""
    return (t * QUARTERS).long().clamp(0, QUARTERS - 1)


class LossByTime(nn.Module):
    """Running means of the training loss in each quarter of t.

    One batch has few samples in a quarter, or none. A sample's part in the mean fades by 1 / ``memory`` with each
    batch. The state is kept on the host and saved with the weights, so that a resumed run goes on with it.
    """

    def __init__(self, *, memory: int = 50):
        """``memory``: batches, at least 1."""
        super().__init__()
        self.keep = 1.0 - 1.0 / memory
        self.sums, self.counts = [0.0] * QUARTERS, [0.0] * QUARTERS
        self.register_load_state_dict_pre_hook(_start_without)

    def update(self, sums: list[float], counts: list[float]) -> dict[str, float]:
        """Sums and numbers of one batch's losses -> the means, ``t0`` nearest to the data; none of a quarter that has
        had no sample."""
        self.sums = [self.keep * old + new for old, new in zip(self.sums, sums)]
        self.counts = [self.keep * old + new for old, new in zip(self.counts, counts)]
        return {f"t{i}": s / n for i, (s, n) in enumerate(zip(self.sums, self.counts)) if n}

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.sums, self.counts], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.sums, self.counts = state.tolist()


class FixedLevelLoss:
    """Squared error at noise levels, and with noise, that depend on the number of the validation image alone.

    Neither the run's law of t, weighting, seed, batch size nor device plays a part, and of the path only that the
    network was trained on it: image i is mixed with noise number i at the i-th noise share
    ``sigma / (alpha + sigma)`` of a sequence that fills [LOW, HIGH] evenly, at whatever t the path has that share. The
    error is that of ``v = (alpha noise - sigma x0) / sqrt(alpha^2 + sigma^2)``, which is ``sqrt(1 + SNR)`` times the
    error of x0_hat. Validation images must be the same, in the same order, for two runs to be compared, and their
    latents those of one codec.
    """

    LOW, HIGH = 0.05, 0.9
    """Noise shares between which every path of docs/math.md can go; Stable Diffusion's ends at 0.936."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def start(self) -> None:
        self._sums = None

    def add(self, denoiser: Denoiser, x0: Tensor, cond: Conditioning, numbers: list[int]) -> None:
        """x0 (B, C, h, w), the latents of the validation images ``numbers``."""
        share = noise_share(numbers)
        error = self.errors(denoiser, x0, cond, numbers, share)
        found = in_bins(error, quarters(share).to(error.device), QUARTERS)
        self._sums = found if self._sums is None else self._sums + found

    def errors(self, denoiser: Denoiser, x0: Tensor, cond: Conditioning, numbers: list[int], share: Tensor) -> Tensor:
        """(B,), means over (C, h, w)."""
        path = denoiser.path
        t = path.time_at(2 * (torch.log1p(-share) - torch.log(share)))
        if path.steps is not None:
            t = (t * path.steps).round().clamp(min=1) / path.steps  # the entries that it was trained at
        x0 = at_least_float32(x0)
        t = t.to(device=x0.device, dtype=x0.dtype)
        noise = seeded_noise(numbers, "validation", tuple(x0.shape[1:])).to(x0)
        alpha, sigma = (per_sample(c, x0) for c in path.alpha_sigma(t))
        x0_hat = denoiser.denoise(path.mix(x0, noise, t), t, cond)
        return ((x0_hat - x0) ** 2 * (1 + (alpha / sigma) ** 2)).flatten(1).mean(1)

    def finish(self) -> dict[str, float]:
        """Means over all images and ranks: ``loss_v``, and by quarters of the noise share ``loss_v_t0`` to ``t3``.

        To be called on every rank.
        """
        sums = self._sums
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        totals, counts = sums.tolist()
        by_quarter = {f"loss_v_t{i}": s / n for i, (s, n) in enumerate(zip(totals, counts)) if n}
        return {"loss_v": sum(totals) / sum(counts), **by_quarter}


def noise_share(numbers: list[int]) -> Tensor:
    """Shares of the images ``numbers``, float64 (B,): multiples of the golden ratio modulo 1, stretched over the range.

    Any run of consecutive numbers fills the range evenly, whatever their count (Weyl's sequence).
    """
    golden = (math.sqrt(5) - 1) / 2
    places = torch.tensor([(0.5 + number * golden) % 1.0 for number in numbers], dtype=torch.float64)
    return FixedLevelLoss.LOW + (FixedLevelLoss.HIGH - FixedLevelLoss.LOW) * places


def _start_without(part: LossByTime, state_dict: dict, prefix: str, *_: object) -> None:
    """A checkpoint of before there were these means: they start anew."""
    state_dict.setdefault(prefix + "_extra_state", LossByTime().get_extra_state())

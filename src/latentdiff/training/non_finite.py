"""What becomes of a batch with a loss or a gradient that is not finite."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path

import pytorch_lightning as pl
from torch import Tensor, nn

from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError
from latentdiff.losses.memory import Memory
from latentdiff.training.callbacks.metrics_log import NonFiniteError
from latentdiff.training.callbacks.refusal import not_fatal
from latentdiff.training.tally import Tally
from latentdiff.types import Batch

FOLDER = "nonfinite"

_log = logging.getLogger(__name__)


class NonFinite(Memory):
    """Stops the run before the update, or passes the batch over as long as there are few of them.

    A batch that is passed over counts as seen and changes no weight, no optimiser and no average; the schedules, which
    go by batch number, go on. Each such batch is written to ``nonfinite/`` in the run directory, every rank its part,
    for ``torch.load(file, weights_only=True)``: ``values`` as this rank found them before they were averaged, and the
    ``batch``. What was passed over is counted in ``train/skipped`` and in the checkpoint.

    Args:
        skip: batches passed over in each stretch of ``per`` batches (0 to per - 1, and so on); one more stops the run.
        per: length of a stretch.
    """

    def __init__(self, *, skip: int = 0, per: int = 1000):
        if not 0 <= skip < per:
            raise InputError(f"task.nonfinite: expected 0 <= skip < per, got skip={skip} and per={per}")
        super().__init__({"stretch": 0.0, "in_stretch": 0.0, "skipped": 0.0})
        self.skip, self.per = skip, per

    def settle(self, tally: Tally, batch: Batch, module: pl.LightningModule) -> dict[str, float] | None:
        """``tally.settle``, or None where the batch is passed over; to be called on every rank, before the update.

        Raises NonFiniteError, on all ranks, where it may not be.
        """
        number, values = module.counters.batches_seen, None
        try:
            values = tally.settle(keys=batch.keys, number=number)
        except NonFiniteError as error:
            name = str(Path(module.trainer.default_root_dir) / FOLDER / f"batch-{number:08d}-rank-")
            _dump(Path(f"{name}{module.global_rank}.pt"), tally, batch, number)
            if not self._pass_over(number):
                raise NonFiniteError(f"{error}{self._advice(f'{name}*.pt')}") from None
            if module.trainer.is_global_zero:
                _log.warning("%s; passed over (%d so far), see '%s*.pt'", error, self.values["skipped"], name)
        if self.skip:
            module.log("train/skipped", self.values["skipped"], logger=False, batch_size=len(batch))
        return values

    def _pass_over(self, number: int) -> bool:
        if number // self.per != self.values["stretch"]:
            self.values |= {"stretch": float(number // self.per), "in_stretch": 0.0}
        if self.values["in_stretch"] >= self.skip:
            return False
        self.values["in_stretch"] += 1
        self.values["skipped"] += 1
        return True

    def _advice(self, files: str) -> str:
        spent = f" {self.skip} in {self.per} batches had been passed over already." if self.skip else ""
        return (
            f".{spent} The update was not made, weights and checkpoints are those of before. The batch is in "
            f"'{files}'; look at these samples. Resume from the last checkpoint with a lower optim.lr, with "
            "trainer.precision=32-true, or with task.nonfinite.skip=10 to pass over a few such batches"
        )


class KeptBuffers:
    """The buffers of ``module``, which forward passes write to (running statistics), to be put back."""

    def __init__(self, module: nn.Module):
        self.module, self.values = module, [buffer.clone() for buffer in module.buffers()]

    def put_back(self) -> None:
        for buffer, value in zip(self.module.buffers(), self.values, strict=True):
            buffer.copy_(value)


def _dump(file: Path, tally: Tally, batch: Batch, number: int) -> None:
    found = {f.name: getattr(batch, f.name) for f in fields(batch)}
    content = {"number": number, "values": tally.values(), "batch": _on_cpu(found)}
    with not_fatal(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        store.write_values(content, file)


def _on_cpu(values: dict[str, object]) -> dict[str, object]:
    return {
        name: value.detach().cpu() if isinstance(value, Tensor) else value
        for name, value in values.items()
        if value is not None
    }

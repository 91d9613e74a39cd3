"""A run of two ranks (one with a third argument) that hangs: ``python hanging_ranks.py OUT WHAT [alone]``.

WHAT is what rank 1, or the only one, does in its third batch. Run by ``test_watchdog.py``.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy

from latentdiff.training.callbacks.watchdog import Watchdog

TIMEOUT = 4.0


class Hang(pl.Callback):
    def __init__(self, what: str):
        self.what = what

    def on_train_batch_start(self, trainer, module, batch, batch_index):
        if module.counters.batches_seen == 2 and self.what == "sleep in a batch":
            time.sleep(600)
        if module.counters.batches_seen == 2 and self.what in ("SIGKILL", "SIGSTOP"):
            os.kill(os.getpid(), getattr(signal, self.what))

    def on_validation_batch_start(self, trainer, module, batch, batch_index, dataloader_idx=0):
        if self.what == "sleep in validation":
            time.sleep(600)


class Loader(list):
    """Its third batch never comes."""

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number == 2:
                time.sleep(600)
            yield batch


def main(out: Path, what: str, ranks: int) -> None:
    path = Path(__file__).parents[1] / "conftest.py"
    spec = importlib.util.spec_from_file_location("training_conftest", path)
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    hangs = rank == ranks - 1
    size = 4 // ranks
    batches = [make.noise_batch(i, rows=slice(rank * size, (rank + 1) * size)) for i in range(5)]
    data = make.Data(batches, batches[:2])
    if hangs and what == "sleep in the loader":
        data.train_dataloader = lambda: Loader(batches)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto",
        max_epochs=1,
        check_val_every_n_epoch=None,
        val_check_interval=2,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=out,
        callbacks=[Watchdog(timeout=TIMEOUT), *([Hang(what)] if hangs else [])],
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    )
    trainer.fit(make.tiny_diffusion_module(), datamodule=data)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], 1 if sys.argv[3:] else 2)

"""What two ranks do together when one of them is told to stop or goes wrong: ``python stopping_ranks.py OUT``.

Run by ``test_stopping_ranks.py``. Writes what became of every scenario on each rank to OUT.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy

from latentdiff.checkpoint import store
from latentdiff.config.errors import RunError
from latentdiff.training.callbacks.checkpoints import Checkpoints
from latentdiff.training.callbacks.interruption import Interruption, Stopped
from latentdiff.training.callbacks.replicas import ReplicaCheck
from latentdiff.training.checkpoint_io import DirectoryCheckpointIO
from latentdiff.training.non_finite import NonFinite

SIGNALS = {
    "rank_0_alone": ((0,), signal.SIGTERM, 1),
    "rank_1_alone": ((1,), signal.SIGUSR1, 1),
    "both": ((0, 1), signal.SIGINT, 1),
    "both_twice": ((0, 1), signal.SIGTERM, 2),
}
"""Scenario -> the ranks that get the signal in batch 3, the signal, and how often."""


class Kill(pl.Callback):
    """Sends this process a signal, ``times`` times, within batch 3 or within validation after batch 2."""

    def __init__(self, number: int, *, times: int = 1, validating: bool = False):
        self.number, self.times, self.validating = number, times, validating

    def on_train_batch_start(self, trainer, module, batch, batch_index):
        if module.counters.batches_seen == 2 and not self.validating:
            self._send()

    def on_validation_batch_start(self, trainer, module, batch, batch_index, dataloader_idx=0):
        if self.validating and batch_index == 1:
            self._send()

    def _send(self):
        for _ in range(self.times):
            os.kill(os.getpid(), self.number)


class Slow(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_index):
        time.sleep(0.1)


class Diverge(pl.Callback):
    """Moves one weight of this rank by the smallest step there is, after batch 1."""

    def on_train_batch_start(self, trainer, module, batch, batch_index):
        if module.counters.batches_seen == 1:
            weight = module.model["denoiser"].backbone.out[2].bias
            with torch.no_grad():
                weight.copy_(torch.nextafter(weight, torch.full_like(weight, 9.0)))


def conftest():
    path = Path(__file__).parents[1] / "conftest.py"
    spec = importlib.util.spec_from_file_location("training_conftest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(
    make, module, rank: int, folder: Path, *callbacks, batches: int = 6, resume: Path | None = None, **options
) -> dict:
    """What ended the run, and the batches and weights that the rank had then."""
    rows = slice(rank * 2, rank * 2 + 2)
    train, val = ([make.noise_batch(i, rows=rows) for i in range(n)] for n in (batches, 3))
    saving = Checkpoints(run_dir=str(folder), every=100)
    settings = {
        "accelerator": "cpu",
        "devices": 2,
        "strategy": DDPStrategy(process_group_backend="gloo", broadcast_buffers=False),
        "max_epochs": 1,
        "check_val_every_n_epoch": None,
        "val_check_interval": 2,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
        "plugins": [DirectoryCheckpointIO(config="seed: 0\n")],
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    }
    trainer = pl.Trainer(callbacks=[*callbacks, saving, Interruption(), ReplicaCheck(every=2)], **settings | options)
    end = "done"
    try:
        data = make.Data(train, val)
        data.start_batch = 0 if resume is None else store.read_manifest(resume).counters["batches_seen"]
        trainer.fit(module, datamodule=data, ckpt_path=resume)
    except Stopped as stopped:
        end = f"{stopped.code}: {stopped}"
    except RunError as error:
        end = f"{type(error).__name__}: {error}"
    last = folder / "checkpoints" / "last"
    saved = store.verify(last).counters["batches_seen"] if last.exists() else None
    return {"end": end, "seen": module.counters.batches_seen, "saved": saved, "weights": weights_of(module)}


def weights_of(module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def spoil(module, bad: bool) -> None:
    """Lets the loss of this rank's first sample in batch 2 be NaN, if ``bad``."""
    plain = module.loss.forward if hasattr(module.loss, "forward") else module.loss.__call__

    def loss(*arguments):
        found = plain(*arguments)
        spoilt = bad and module.counters.batches_seen == 2
        return found + torch.tensor([float("nan"), 0.0]) if spoilt else found

    loss.sample_t = module.loss.sample_t
    module.loss = loss


def main(out: Path) -> None:
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    make, found = conftest(), {}
    run = lambda name, *callbacks, module=None, **options: found.update(  # noqa: E731
        {name: train(make, module or make.tiny_diffusion_module(), rank, out.parent / name, *callbacks, **options)}
    )
    for name, (ranks, number, times) in SIGNALS.items():
        run(name, *([Kill(number, times=times)] if rank in ranks else []))
    run("validating", *([Kill(signal.SIGTERM, validating=True)] if rank == 1 else []))
    run("time", Slow(), batches=100, max_time={"seconds": 1}, val_check_interval=1000)
    for name, skip in (("stop", 0), ("skip", 1)):
        module = make.tiny_diffusion_module(nonfinite=NonFinite(skip=skip))
        spoil(module, rank == 1)
        run(name, module=module, batches=4)
    run("replicas", *([Diverge()] if rank == 1 else []))
    starts = {"nothing": (out.parent / "both", None), "older": (out.parent / "both", out.parent / "validating")}
    for name, runs in starts.items():
        resume = runs[rank] and runs[rank] / "checkpoints" / "last"
        run(f"rank 1 has {name}", resume=resume)
    torch.save(found, out.with_suffix(f".{rank}"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

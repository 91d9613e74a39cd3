"""Trains tiny modules in two processes over gloo, by DDP and FSDP2: ``python two_ranks.py OUT [BATCHES]``.

Run by ``test_two_ranks.py``. Writes the final weights of every scenario, of stage two also what it logged, or the error
that ended it, to OUT; with FSDP2 rank 0 has the weights.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy

from latentdiff.losses.adversarial import NonSaturating
from latentdiff.losses.regularisers import R1, LeCam
from latentdiff.models.autoencoder.bottlenecks.vq import VQ
from latentdiff.training.callbacks.checkpoints import Checkpoints
from latentdiff.training.callbacks.metrics_log import NonFiniteError
from latentdiff.training.checkpoint_io import DirectoryCheckpointIO
from latentdiff.training.muon import Muon
from latentdiff.training.parallel import FullySharded
from latentdiff.training.power_ema import PowerEma

BATCHES = {"plain": 20, "cut": 20}
"""Of the main scenarios; the others have 6."""


def fixtures():
    spec = importlib.util.spec_from_file_location("training_conftest", Path(__file__).with_name("conftest.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scenarios(make):
    """Name -> module: both stages, whole and cut, with everything that has a state."""
    adversary = {
        "learn_logvar": True,
        "gradient_clip": 20.0,
        "alarm_window": 3,
        "schedule": {"start": 1, "warmup": 1, "ramp": 3},
    }

    def codebook():
        torch.manual_seed(0)
        bottleneck = VQ(entries=8, channels=2, ema_decay=0.9, restart_after=1)
        return make.tiny_autoencoder_module(
            autoencoder=make.tiny_autoencoder(bottleneck), bottleneck_weight=1.0, **adversary
        )

    extras = {"adversarial_loss": NonSaturating(), "norm": "batch"}
    return {
        "plain": lambda: make.tiny_autoencoder_module(**adversary, r1=R1(every=4), lecam=LeCam(weight=0.01)),
        "batch_norm": lambda: make.tiny_autoencoder_module(**adversary, **extras, r1=R1(every=4)),
        "cut": lambda: make.tiny_autoencoder_module(**adversary, r1=R1(every=4), micro_batch=1),
        "codebook": codebook,
        "stage_two": lambda: make.tiny_diffusion_module(gradient_clip=0.5, power_ema=PowerEma, offset_noise=0.1),
        "stage_two_cut": lambda: make.tiny_diffusion_module(gradient_clip=0.5, micro_batch=1),
    }


def settings(folder: Path) -> dict:
    return {
        "accelerator": "cpu",
        "precision": "64-true",
        "max_epochs": 1,
        "check_val_every_n_epoch": None,
        "val_check_interval": 6,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
    }


def sharded_scenarios(make):
    """Name -> module, for FSDP2: all of stage one that is not sharded, micro-batches, and Muon's whole matrices."""
    plain = scenarios(make)
    return {
        "plain": plain["plain"],
        "cut": plain["cut"],
        "codebook": plain["codebook"],
        "stage_two": plain["stage_two"],
        "muon": lambda: make.tiny_diffusion_module(
            gradient_clip=0.5, micro_batch=1, optimizer=functools.partial(Muon, lr=1e-2, adamw=["*out.2*"])
        ),
    }


def fit(make, module, batches: list, rank: int, ranks: int, *callbacks, resume: Path | None = None, **options):
    """The trainer after these numbers of global batches, of 4 samples each, of which this rank sees its share."""
    size = 4 // ranks
    rows = slice(rank * size, (rank + 1) * size)
    batches = [make.noise_batch(i, rows=rows) for i in batches]
    trainer = pl.Trainer(callbacks=list(callbacks), **options)
    trainer.fit(module, datamodule=make.Data(batches, batches[:2]), ckpt_path=resume)
    return trainer


def train(make, name: str, module, rank: int, ranks: int, batches: int | None = None, **options) -> dict:
    """Whole weights after training, of stage two also what was logged."""
    trainer = fit(make, module, range(batches or BATCHES.get(name, 6)), rank, ranks, **options)
    logged = trainer.callback_metrics if name.startswith("stage_two") else {}
    state = trainer.strategy.lightning_module_state_dict()
    return {name: torch.as_tensor(value).detach().clone() for name, value in {**logged, **state}.items()}


def train_wide(make, name: str, module, rank: int, ranks: int, batches: int | None = None, **options) -> dict:
    """``train`` in float64, where Lightning does not offer it: for FSDP2."""
    with float64():
        return train(make, name, module.double(), rank, ranks, batches, **(options | {"precision": "32-true"}))


@contextmanager
def float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def first_losses(make, rank: int, ranks: int, folder: Path, strategy=lambda: "auto") -> dict[str, float]:
    """The logged loss of the first batch, in float32, of both stages."""
    options = settings(folder) | {"precision": "32-true", "devices": ranks}
    modules = {"train/nll": make.tiny_autoencoder_module(), "train/loss": make.tiny_diffusion_module()}
    return {
        name: float(fit(make, module, [0], rank, ranks, strategy=strategy(), **options).callback_metrics[name])
        for name, module in modules.items()
    }


def checkpointing(folder: Path) -> dict:
    """A trainer's parts that write and read our checkpoints."""
    return {"plugins": [DirectoryCheckpointIO(config="{}")], **settings(folder), "precision": "32-true"}


def resaved(make, folder: Path) -> None:
    """Two ranks load ``one``, save it as ``two``, train batches 3 to 5 from there and save ``three``."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    with float64():
        for name, batches in (("two", []), ("three", [3, 4, 5])):
            module = sharded_scenarios(make)["muon"]().double()
            options = checkpointing(folder) | {"devices": 2, "strategy": FullySharded()}
            callback = Checkpoints(run_dir=str(folder))
            trainer = fit(make, module, batches, rank, 2, callback, resume=folder / "one", **options)
            trainer.save_checkpoint(folder / name)


def spoilt(make, rank: int, **options) -> str:
    """The error of a run in which one sample of rank 1 has no finite loss; both ranks must get it."""
    module = make.tiny_autoencoder_module()
    plain = module.reconstruction.terms

    def terms(reconstruction, image):
        found = plain(reconstruction, image)
        if rank == 1 and module.counters.batches_seen == 2:
            found["nll"] = found["nll"] + torch.tensor([0.0, float("nan")])
        return found

    module.reconstruction.terms = terms
    try:
        train(make, "spoilt", module, rank, 2, **options)
    except NonFiniteError as error:
        return str(error)
    return "no error"


def main(out: Path, batches: int | None) -> None:
    """With ``batches``, both stages alone, for so long."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    make, folder, results = fixtures(), out.parent, {}
    names = ("plain", "stage_two")
    for name, build in scenarios(make).items():
        if batches is None or name in names:
            ddp = DDPStrategy(
                process_group_backend="gloo", broadcast_buffers=False, gradient_as_bucket_view=name == "cut"
            )
            results[name] = train(make, name, build(), rank, 2, batches, devices=2, strategy=ddp, **settings(folder))
    for name, build in sharded_scenarios(make).items():
        if batches is None or name in names:
            options = settings(folder) | {"devices": 2, "strategy": FullySharded()}
            results[f"sharded {name}"] = train_wide(make, name, build(), rank, 2, batches or 6, **options)
    if batches is None:
        ddp = lambda: DDPStrategy(process_group_backend="gloo", broadcast_buffers=False)  # noqa: E731
        results["spoilt"] = spoilt(make, rank, devices=2, strategy=ddp(), **settings(folder))
        results["first"] = first_losses(make, rank, 2, folder, ddp)
        results["sharded first"] = first_losses(make, rank, 2, folder, FullySharded)
        resaved(make, folder)
    torch.save(results, out.with_suffix(f".{rank}"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)

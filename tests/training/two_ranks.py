"""Trains tiny modules in two processes over gloo: ``python two_ranks.py OUT``, run by ``test_two_ranks.py``.

Writes the final weights of every scenario, of stage two also what it logged, or the error that ended it, to OUT.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy

from latentdiff.losses.adversarial import NonSaturating
from latentdiff.losses.regularisers import R1, LeCam
from latentdiff.models.autoencoder.bottlenecks.vq import VQ
from latentdiff.training.callbacks.metrics_log import NonFiniteError
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


def train(make, name: str, module, rank: int, ranks: int, **options) -> dict[str, torch.Tensor]:
    size = 4 // ranks
    rows = slice(rank * size, (rank + 1) * size)
    batches = [make.noise_batch(i, rows=rows) for i in range(BATCHES.get(name, 6))]
    trainer = pl.Trainer(**options)
    trainer.fit(module, datamodule=make.Data(batches, batches[:2]))
    logged = trainer.callback_metrics if name.startswith("stage_two") else {}
    return {name: value.detach().clone() for name, value in {**logged, **module.state_dict()}.items()}


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


def main(out: Path) -> None:
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    make, results = fixtures(), {}
    for name, build in scenarios(make).items():
        ddp = DDPStrategy(process_group_backend="gloo", broadcast_buffers=False, gradient_as_bucket_view=name == "cut")
        results[name] = train(make, name, build(), rank, 2, devices=2, strategy=ddp, **settings(out.parent))
    ddp = DDPStrategy(process_group_backend="gloo", broadcast_buffers=False)
    results["spoilt"] = spoilt(make, rank, devices=2, strategy=ddp, **settings(out.parent))
    torch.save(results, out.with_suffix(f".{rank}"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

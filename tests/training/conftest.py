"""Tiny modules of both stages, batches of noise, and a trainer that runs them on a CPU."""

from __future__ import annotations

import functools

import pytest
import pytorch_lightning as pl
import torch
from torch.optim import AdamW

from latentdiff.conditioning.text_transformer import TextTransformerConditioner
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.loss import DiffusionLoss
from latentdiff.diffusion.parameterization import Velocity
from latentdiff.diffusion.path import RectifiedFlow
from latentdiff.diffusion.timesteps import Uniform
from latentdiff.diffusion.weighting import Unit
from latentdiff.losses.adversarial import AdversarialSchedule
from latentdiff.losses.reconstruction import ReconstructionLoss
from latentdiff.models.autoencoder.autoencoder import Autoencoder
from latentdiff.models.autoencoder.bottlenecks.base import Bottleneck
from latentdiff.models.autoencoder.bottlenecks.kl import KL
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.models.backbones.unet import UNet
from latentdiff.models.discriminator import PatchDiscriminator
from latentdiff.models.text_transformer import TextTransformer
from latentdiff.training.autoencoder_module import AutoencoderModule
from latentdiff.training.diffusion_module import DiffusionModule
from latentdiff.training.optim import WarmupConstant
from latentdiff.types import Batch

CAPTIONS = ("a red circle", "a blue box on a white background", "a green star", "")


class Loader:
    def __init__(self, batches: list[Batch]):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Data(pl.LightningDataModule):
    start_batch = 0

    def __init__(self, train: list[Batch], val: list[Batch]):
        super().__init__()
        self.train, self.val = train, val

    def train_dataloader(self) -> Loader:
        return Loader(self.train)

    def val_dataloader(self) -> Loader:
        return Loader(self.val)

    def transfer_batch_to_device(self, batch: Batch, device, dataloader_idx: int) -> Batch:
        return batch

    def statistics_batches(self, count: int):
        return iter(self.val)

    def preview(self, count: int) -> Batch:
        return self.val[0]


def tiny_autoencoder(bottleneck: Bottleneck | None = None, **changes) -> Autoencoder:
    return Autoencoder(
        bottleneck=bottleneck or KL(),
        channels=4,
        channel_multipliers=(1,),
        num_res_blocks=1,
        latent_channels=2,
        patch=2,
        mid_attention=False,
        norm_groups=2,
        **changes,
    )


def noise_batch(number: int = 0, size: int = 4, rows: slice | None = None) -> Batch:
    rows = slice(0, size) if rows is None else rows
    images = torch.randint(0, 256, (size, 3, 8, 8), generator=torch.Generator().manual_seed(100 + number))
    captions = [CAPTIONS[(number + i) % len(CAPTIONS)] for i in range(size)]
    keys = [f"{number}-{i}" for i in range(size)]
    return Batch(
        keys=keys[rows],
        image=images[rows].to(torch.uint8),
        caption=captions[rows],
        number=number,
        start=rows.start,
        total=size,
    )


def tiny_autoencoder_module(
    *, learn_logvar: bool = False, schedule: dict | None = None, norm: str = "group", **changes
) -> AutoencoderModule:
    torch.manual_seed(0)
    options = {
        "autoencoder": tiny_autoencoder(),
        "reconstruction": ReconstructionLoss(perceptual=None, learn_logvar=learn_logvar),
        "discriminator": PatchDiscriminator(channels=4, layers=1, norm=norm, norm_groups=2),
        "adversarial": AdversarialSchedule(**({"weight": 0.5, "start": 0} | (schedule or {}))),
        "optimizer": functools.partial(AdamW, lr=1e-3),
        "discriminator_optimizer": functools.partial(AdamW, lr=1e-3),
        "schedule": WarmupConstant(),
        "bottleneck_weight": 0.1,
        "ema_decay": 0.9,
        "gradient_clip": float("inf"),
    }
    return AutoencoderModule(**(options | changes))


@pytest.fixture
def batch():
    """Global batch ``number`` of noise images and captions, or the rows ``rows`` of it."""
    return noise_batch


@pytest.fixture
def autoencoder_module():
    return tiny_autoencoder_module


def tiny_diffusion_module(**changes) -> DiffusionModule:
    torch.manual_seed(0)
    unet = UNet(
        in_channels=2,
        out_channels=2,
        channels=8,
        channel_multipliers=(1,),
        num_res_blocks=1,
        attention_factors=(),
        context_dim=4,
        heads=2,
        norm_groups=2,
    )
    text = TextTransformer(width=4, layers=1, heads=2, max_length=6)
    options = {
        "codec": LatentCodec(autoencoder=tiny_autoencoder(), mean=[0.1, -0.1], std=[0.5, 2.0]),
        "denoiser": Denoiser(backbone=unet, path=RectifiedFlow(), parameterization=Velocity()),
        "conditioner": TextTransformerConditioner(transformer=text, drop=0.5),
        "loss": DiffusionLoss(timesteps=Uniform(), weighting=Unit()),
        "optimizer": functools.partial(AdamW, lr=1e-3),
        "schedule": WarmupConstant(),
        "ema_decay": 0.9,
        "gradient_clip": float("inf"),
    }
    return DiffusionModule(**(options | changes))


@pytest.fixture
def diffusion_module():
    return tiny_diffusion_module


@pytest.fixture(params=["autoencoder", "diffusion"])
def any_module(request, autoencoder_module, diffusion_module):
    """The factory of either stage's module."""
    return {"autoencoder": autoencoder_module, "diffusion": diffusion_module}[request.param]


@pytest.fixture
def trainer(tmp_path):
    def make(*callbacks: pl.Callback, **options) -> pl.Trainer:
        settings = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "check_val_every_n_epoch": None,
            "val_check_interval": 10**6,
            "num_sanity_val_steps": 0,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "default_root_dir": tmp_path,
        }
        return pl.Trainer(callbacks=list(callbacks), **(settings | options))

    return make


@pytest.fixture
def fit(trainer):
    """Trains on the batches, validating as the options say, and returns the trainer."""

    def run(module, train: list[Batch], *callbacks, val: list[Batch] = (), resume: str | None = None, **options):
        lightning = trainer(*callbacks, **options)
        lightning.fit(module, datamodule=Data(train, list(val) or train[:1]), ckpt_path=resume)
        return lightning

    return run


@pytest.fixture
def validate(trainer):
    """The logged values of one validation."""

    def run(module, val: list[Batch]) -> dict[str, float]:
        lightning = trainer()
        lightning.validate(module, datamodule=Data([], val), verbose=False)
        return {name: float(value) for name, value in lightning.callback_metrics.items()}

    return run


@pytest.fixture
def gradients(fit):
    """The gradients by parameter name of one training step on a batch; the step itself moves nothing."""

    def of(module, batch: Batch, **options) -> dict[str, torch.Tensor]:
        module.schedule = lambda number: 0.0
        fit(module, [batch], **options)
        return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

    return of


@pytest.fixture
def tiny():
    """The tiny autoencoder, with another bottleneck or other options."""
    return tiny_autoencoder

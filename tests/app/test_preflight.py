"""What train.py holds against the first stage before any work."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig, OmegaConf

from latentdiff.app.preflight import check_latents
from latentdiff.config.errors import InputError


def config(in_channels: object = "${latent.channels}", size: int = 16) -> DictConfig:
    backbone = {
        "_target_": "latentdiff.models.backbones.unet.UNet",
        "in_channels": in_channels,
        "out_channels": "${latent.channels}",
        "channels": 8,
        "channel_multipliers": [1, 1],
        "num_res_blocks": 1,
        "attention_factors": [],
        "context_dim": 4,
        "heads": 2,
        "norm_groups": 2,
    }
    latent = {"channels": None, "factor": None}
    return OmegaConf.create({"first_stage": {}, "latent": latent, "backbone": backbone, "data": {"size": size}})


def test_the_shape_of_the_latents_goes_into_the_configuration() -> None:
    cfg = config()
    check_latents(cfg, {"channels": 6, "factor": 4})
    assert (cfg.latent.channels, cfg.latent.factor, cfg.backbone.in_channels) == (6, 4, 6)


def test_a_backbone_that_reads_fewer_channels_than_the_latents_have_is_refused() -> None:
    with pytest.raises(InputError, match=r"backbone\.in_channels: the backbone reads 3 channels, .* latents have 4"):
        check_latents(config(in_channels=3), {"channels": 4, "factor": 4})


def test_an_image_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.size: 20 is not divisible by 4 .* x 2 .* = 8; 16 is"):
        check_latents(config(size=20), {"channels": 4, "factor": 4})

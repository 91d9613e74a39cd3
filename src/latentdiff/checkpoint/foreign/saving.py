"""A first stage of another program as a checkpoint of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import OmegaConf

from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign.architecture import Foreign
from latentdiff.checkpoint.foreign.node import node
from latentdiff.checkpoint.foreign.statistics import Statistics


def save_first_stage(
    found: Foreign, statistics: Statistics, place: Path, *, data: Mapping[str, object], extra: Mapping[str, object]
) -> None:
    """Writes the new checkpoint ``place``, with the weights as averaged ones.

    ``statistics`` whiten its latents; ``data`` is the node of its configuration, ``extra`` the manifest's. Raises
    InputError where the autoencoder cannot be built here.
    """
    config = {"autoencoder": node(found.architecture), "data": dict(data)}
    store.save(
        place,
        kind="autoencoder",
        model={"latent_mean": torch.tensor(statistics.mean), "latent_std": torch.tensor(statistics.std)},
        ema={f"ema.model.{name}": value for name, value in found.autoencoder().state_dict().items()},
        config=OmegaConf.to_yaml(OmegaConf.create(config)),
        counters=dict.fromkeys(store.COUNTERS, 0),
        latent=found.architecture.latent,
        extra=dict(extra),
    )

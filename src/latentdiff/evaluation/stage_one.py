"""Evaluating a first stage: reconstructions whose latents are looked at on the way, and what is said about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from rich.table import Table
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.generation.pipeline import to_uint8
from latentdiff.metrics.latents import LatentDiagnostics
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.types import Batch

SHOWN_CHANNELS = 16


@runtime_checkable
class Quantiser(Protocol):
    """A bottleneck with a codebook, VQ or FSQ."""

    entries: int

    def indices(self, z: Tensor) -> Tensor: ...


class MeasuredReconstruction:
    """As ``generation.pipeline.Reconstruction``, the posteriors on the way are accumulated in ``latents``.

    One pass of encoder and decoder per image, in float32; the decoder reads the posterior mean.
    """

    def __init__(self, *, codec: LatentCodec, device: torch.device | str):
        self.codec, self.device = codec, torch.device(device)
        quantiser = codec.autoencoder.bottleneck
        self._quantiser = quantiser if isinstance(quantiser, Quantiser) else None
        self.latents = LatentDiagnostics(
            channels=codec.channels,
            device=self.device,
            codebook_entries=None if self._quantiser is None else self._quantiser.entries,
        )

    @torch.inference_mode()
    def __call__(self, batch: Batch, seeds: list[int]) -> Tensor:
        """``batch.image`` -> uint8 (B, 3, H, W). The seeds do nothing."""
        if batch.image is None:
            raise InputError("reconstructions need images, the batch has none")
        with torch.autocast(self.device.type, enabled=False):
            posterior = self.codec.autoencoder.encode(batch.image.to(self.device).float() / 127.5 - 1.0)
            indices = None if self._quantiser is None else self._quantiser.indices(posterior.mean)
            self.latents.update(posterior, indices)
            return to_uint8(self.codec.decode(self.codec.whiten(posterior.mean)))

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {"reconstruction": "posterior mean", "decoder_precision": "float32", "device": self.device.type}

    def latent_results(self) -> dict[str, object]:
        """``LatentDiagnostics.compute`` with ``whitened``: what the codec's statistics, which are those of training
        images, make of these latents. Close to mean 0 and standard deviation 1 where the sets are alike."""
        results = self.latents.compute()
        mean, std, _ = (each.cpu() for each in self.latents.moments.compute())
        own_mean, own_std = (each.double().flatten().cpu() for each in (self.codec.mean, self.codec.std))
        whitened = std / own_std
        results["whitened"] = {
            "largest_mean": float(((mean - own_mean) / own_std).abs().max()),
            "smallest_std": float(whitened.min()),
            "largest_std": float(whitened.max()),
        }
        return results


def above_floor(results: Mapping[str, float], floor: float) -> dict[str, float]:
    """The results with the PSNR of the patch PCA and how much more the model's own is, both in dB."""
    return {**results, "patch_pca_psnr": floor, "db_above_patch_pca": results["psnr"] - floor}


def channels_table(channels: Mapping[str, list[float]]) -> Table:
    """The first ``SHOWN_CHANNELS`` latent channels, one column each; the rest is in results.json."""
    count = len(channels["mean"])
    shown = min(count, SHOWN_CHANNELS)
    title = "latent channels" if shown == count else f"the first {shown} of {count} latent channels"
    table = Table("channel", title=title)
    for i in range(shown):
        table.add_column(str(i), justify="right")
    for name, values in channels.items():
        table.add_row(name, *(f"{value:.3g}" for value in values[:shown]))
    return table

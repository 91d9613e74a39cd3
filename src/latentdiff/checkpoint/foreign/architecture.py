"""What an autoencoder is built from, as far as other programs' files can say it, and its published tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from latentdiff.checkpoint.foreign.statistics import Statistics, chosen
from latentdiff.checkpoint.foreign.weights import Shapes, check_names
from latentdiff.config.errors import InputError
from latentdiff.models.autoencoder.autoencoder import Autoencoder
from latentdiff.models.autoencoder.bottlenecks.kl import KL
from latentdiff.models.autoencoder.bottlenecks.vq import VQ

LDM_GROUPS = 32
"""LDM's code has the groups of its norms written in."""

_CODEBOOK, _PUBLISHED_CODEBOOK = "bottleneck.embedding.weight", "quantize.embedding.weight"


@dataclass(frozen=True)
class Architecture:
    """``channel_multipliers`` are of ``channels``, the width of the first convolution; ``codebook`` None is KL."""

    image_channels: int
    channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    embed_dim: int
    attention_factors: tuple[int, ...] = ()
    mid_attention: bool = True
    quant_conv: bool = True
    post_quant_conv: bool = True
    norm_groups: int = LDM_GROUPS
    codebook: int | None = None

    @property
    def latent(self) -> dict[str, int]:
        """As in a manifest."""
        return {"channels": self.embed_dim, "factor": 2 ** (len(self.channel_multipliers) - 1)}

    def on_meta(self) -> Autoencoder:
        """The autoencoder without memory for its weights. Raises InputError where the sizes do not fit each other."""
        with torch.device("meta"):
            return Autoencoder(
                bottleneck=KL() if self.codebook is None else VQ(entries=self.codebook, channels=self.embed_dim),
                channels=self.channels,
                channel_multipliers=self.channel_multipliers,
                num_res_blocks=self.num_res_blocks,
                latent_channels=self.z_channels,
                embed_dim=self.embed_dim,
                attention_factors=self.attention_factors,
                in_channels=self.image_channels,
                mid_attention=self.mid_attention,
                norm_groups=self.norm_groups,
                quant_conv=self.quant_conv,
                post_quant_conv=self.post_quant_conv,
            )


@dataclass(frozen=True)
class Foreign:
    """An autoencoder that another program wrote."""

    path: Path
    """Of its weights."""
    architecture: Architecture
    weights: dict[str, Tensor]
    """Under the published names."""
    statistics: Statistics | None
    """The scale of its latents, where the files say it."""

    def chosen_statistics(self, *, scale: object = None, shift: object = None) -> Statistics:
        """What to whiten with: the file's statistics, with the user's ``scale`` and ``shift`` in place of them."""
        return chosen(self.statistics, self.architecture.embed_dim, scale=scale, shift=shift, path=self.path)

    def autoencoder(self) -> Autoencoder:
        """Built, loaded strictly, in float32. Raises InputError where the tensors do not fit the architecture."""
        built = self.architecture.on_meta()
        published = published_names(built)
        check_names(published, self.weights, self.path)
        loaded = {published[name]: value.to(torch.float32) for name, value in self.weights.items()}
        try:
            built.load_state_dict(loaded, strict=True, assign=True)
        except RuntimeError as error:
            faults = " ".join(line.strip() for line in str(error).splitlines()[1:4])
            raise InputError(f"the tensors in '{self.path}' do not fit its architecture: {faults}") from error
        return built.requires_grad_(False).eval()


def published_names(autoencoder: Autoencoder) -> dict[str, str]:
    """Name in LDM's files -> name in ours; they differ in the codebook alone. Without what only training needs."""
    private = {f"bottleneck.{name}" for name in autoencoder.bottleneck.training_state}
    own = [name for name in autoencoder.state_dict() if name not in private]
    return {_PUBLISHED_CODEBOOK if name == _CODEBOOK else name: name for name in own}


def published_weights(autoencoder: Autoencoder) -> dict[str, Tensor]:
    """The weights under LDM's names."""
    own = autoencoder.state_dict()
    return {published: own[name] for published, name in published_names(autoencoder).items()}


def of_module(autoencoder: Autoencoder) -> Architecture:
    """The architecture of one of ours.

    Raises InputError for what no other program's format can say: a folded image, another bottleneck than KL and VQ, or
    norms of several numbers of groups.
    """
    if autoencoder.patch > 1:
        raise InputError(
            f"this autoencoder folds {autoencoder.patch}x{autoencoder.patch} pixels into channels (autoencoder.patch), "
            "which neither LDM's nor diffusers' format knows; only patch 1 can be exported"
        )
    if not isinstance(autoencoder.bottleneck, KL | VQ):
        raise InputError(
            f"a bottleneck {type(autoencoder.bottleneck).__name__} is known to neither LDM's nor diffusers' format; "
            "only KL and VQ can be exported"
        )
    groups = {module.num_groups for module in autoencoder.modules() if isinstance(module, nn.GroupNorm)}
    if len(groups) > 1:
        raise InputError(
            f"the norms of this autoencoder have {' and '.join(map(str, sorted(groups)))} groups: norm_groups does "
            "not divide the width of every layer, and other programs' formats know one number for all layers"
        )
    return infer(published_weights(autoencoder), Path("autoencoder"), norm_groups=groups.pop())


def infer(weights: Mapping[str, Tensor], path: Path, *, norm_groups: int = LDM_GROUPS) -> Architecture:
    """The architecture that weights under the published names describe.

    Raises InputError where a tensor that says a part of it is missing, or where it is none that we can build.
    """
    read = Shapes(weights, path, "an autoencoder")
    channels, image_channels = read("encoder.conv_in.weight")[:2]
    levels = read.number("encoder.down.{}.block.0.conv1.weight")
    widths = [read(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(levels)]
    wide, z_channels = read("encoder.conv_out.weight")[0], read("decoder.conv_in.weight")[1]
    codebook = read(_PUBLISHED_CODEBOOK)[0] if _PUBLISHED_CODEBOOK in weights else None
    expansion = 2 if codebook is None else 1
    if wide != expansion * z_channels:
        kind = "KL" if codebook is None else "VQ"
        raise InputError(
            f"'{path}': a {kind} autoencoder whose decoder reads {z_channels} channels has an encoder that writes "
            f"{expansion * z_channels}, this one writes {wide}; it is another kind of autoencoder"
        )
    convs = {name: f"{name}.weight" in weights for name in ("quant_conv", "post_quant_conv")}
    if (image_out := read("decoder.conv_out.weight")[0]) != image_channels:
        raise InputError(f"'{path}' reads images of {image_channels} channels and writes {image_out}; expected equal")
    return Architecture(
        image_channels=image_channels,
        channels=channels,
        channel_multipliers=multipliers(widths, channels, path),
        num_res_blocks=read.number("encoder.down.0.block.{}.conv1.weight"),
        z_channels=z_channels,
        embed_dim=read("post_quant_conv.weight")[1] if convs["post_quant_conv"] else z_channels,
        attention_factors=tuple(2**i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in weights),
        mid_attention="encoder.mid.attn_1.q.weight" in weights,
        norm_groups=norm_groups,
        codebook=codebook,
        **convs,
    )


def multipliers(widths: list[int], channels: int, path: Path) -> tuple[int, ...]:
    """The widths of the levels in units of the first. Raises InputError where they are no multiples of it."""
    if channels < 1 or any(width % channels for width in widths) or not widths:
        raise InputError(f"'{path}': the widths {widths} of the levels are no multiples of the first, {channels}")
    return tuple(width // channels for width in widths)

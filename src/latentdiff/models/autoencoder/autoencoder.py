"""Stage one: LDM's convolutional autoencoder (arXiv:2112.10752, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.config.errors import InputError
from latentdiff.models.autoencoder.bottlenecks.base import Bottleneck, DiagonalGaussian, Latent
from latentdiff.models.autoencoder.encoder_decoder import Decoder, Encoder


class Autoencoder(nn.Module):
    """Images (B, in_channels, H, W) in [-1, 1] <-> latents (B, embed_dim, H / factor, W / factor).

    ``latent_channels`` is the width of the encoder's output (LDM's z_channels); ``embed_dim``, equal to it unless
    given, that of the latent. ``attention_factors`` are down-factors of the feature maps (1, 2, 4, ...).
    ``patch`` > 1 folds patch x patch pixels into channels before the first convolution and unfolds them after the
    last; 1 is LDM. ``norm_groups`` is exact where it divides a layer's channels (see ``nn.norms``). ``quant_conv`` and
    ``post_quant_conv``: the 1x1 convolutions around the bottleneck, which SD3 and FLUX do without.

    Raises InputError where the sizes do not fit each other.
    """

    def __init__(
        self,
        *,
        bottleneck: Bottleneck,
        channels: int,
        channel_multipliers: Sequence[int],
        num_res_blocks: int,
        latent_channels: int,
        embed_dim: int | None = None,
        attention_factors: Sequence[int] = (),
        patch: int = 1,
        in_channels: int = 3,
        dropout: float = 0.0,
        mid_attention: bool = True,
        norm_groups: int = 32,
        quant_conv: bool = True,
        post_quant_conv: bool = True,
    ) -> None:
        super().__init__()
        levels = len(channel_multipliers)
        _check_attention_factors(attention_factors, levels)
        embed_dim = latent_channels if embed_dim is None else embed_dim
        _check_width(embed_dim, latent_channels, bottleneck, convolved=quant_conv and post_quant_conv)
        shared: dict[str, Any] = {
            "channels": channels,
            "channel_multipliers": channel_multipliers,
            "num_res_blocks": num_res_blocks,
            "attention_factors": attention_factors,
            "mid_attention": mid_attention,
            "norm_groups": norm_groups,
            "dropout": dropout,
        }
        pixels = in_channels * patch**2
        wide = bottleneck.expansion
        self.encoder = Encoder(in_channels=pixels, out_channels=wide * latent_channels, **shared)
        self.decoder = Decoder(in_channels=latent_channels, out_channels=pixels, **shared)
        self.quant_conv = nn.Conv2d(wide * latent_channels, wide * embed_dim, 1) if quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(embed_dim, latent_channels, 1) if post_quant_conv else nn.Identity()
        self.bottleneck = bottleneck
        self.patch = patch
        self.in_channels = in_channels
        self.latent_channels = embed_dim
        """Channels of the latent."""
        self.factor = patch * 2 ** (levels - 1)
        """Pixels per latent position along one axis."""

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight where the adversarial loss's adaptive weight is measured."""
        weight = self.decoder.conv_out.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of an image of that size, which must be a multiple of ``factor``."""
        return self.latent_channels, height // self.factor, width // self.factor

    def encode(self, image: Tensor) -> DiagonalGaussian:
        """Image in [-1, 1] -> posterior. Raises InputError where the size is not a multiple of ``factor``."""
        return self.bottleneck.posterior(self._features(image))

    def decode(self, z: Tensor) -> Tensor:
        """Latent, quantised here where the bottleneck quantises -> image, about in [-1, 1], not clamped."""
        if z.ndim != 4 or z.shape[1] != self.latent_channels:
            raise InputError(
                f"decode expects latents of shape (B, {self.latent_channels}, h, w), got {tuple(z.shape)}; "
                "the latents come from another autoencoder"
            )
        return self._image(self.bottleneck.for_decoder(z))

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Latent]:
        """The training pass: reconstruction, and the latent it was made from with its penalty.

        ``noise``: standard normal, (B, *latent_shape(H, W)).
        """
        latent = self.bottleneck(self._features(image), noise)
        return self._image(latent.z), latent

    def _features(self, image: Tensor) -> Tensor:
        self._check_image(image)
        if self.patch > 1:
            image = F.pixel_unshuffle(image, self.patch)
        return self.quant_conv(self.encoder(image))

    def _image(self, z: Tensor) -> Tensor:
        image = self.decoder(self.post_quant_conv(z))
        return F.pixel_shuffle(image, self.patch) if self.patch > 1 else image

    def _check_image(self, image: Tensor) -> None:
        if image.ndim != 4 or image.shape[1] != self.in_channels or not image.is_floating_point():
            raise InputError(
                f"the autoencoder expects float images of shape (B, {self.in_channels}, H, W) in [-1, 1], "
                f"got {image.dtype} {tuple(image.shape)}"
            )
        height, width = image.shape[-2:]
        if height % self.factor or width % self.factor:
            raise InputError(
                f"the autoencoder halves images down by {self.factor}: height and width must be multiples of "
                f"{self.factor}, got {height}x{width}; choose another image size (data.size)"
            )


def _check_attention_factors(attention_factors: Sequence[int], levels: int) -> None:
    known = [2**i for i in range(levels)]
    if strange := [f for f in attention_factors if f not in known]:
        raise InputError(f"attention_factors {strange} name no level of the network; it has the down-factors {known}")


def _check_width(embed_dim: int, latent_channels: int, bottleneck: Bottleneck, *, convolved: bool) -> None:
    if embed_dim != latent_channels and not convolved:
        raise InputError(
            f"without quant_conv or post_quant_conv the latent is as wide as the encoder's output: "
            f"embed_dim {embed_dim} must equal latent_channels {latent_channels}"
        )
    if bottleneck.channels not in (None, embed_dim):
        raise InputError(
            f"the {type(bottleneck).__name__} bottleneck is made for {bottleneck.channels} latent channels, "
            f"the autoencoder has {embed_dim}; set both to the same number"
        )

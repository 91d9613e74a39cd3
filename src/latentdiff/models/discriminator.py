"""The patch discriminator of stage one (arXiv:1611.07004, section 3.2.2; arXiv:2012.09841)."""

from __future__ import annotations

from torch import Tensor, nn

from latentdiff.nn.norms import GroupNorm


class PatchDiscriminator(nn.Module):
    """Image (B, in_channels, H, W) in [-1, 1] -> map of logits (B, 1, h, w), high for real; h is about H / 2^layers.

    ``layers`` = 3 and ``channels`` = 64 give LDM's discriminator, its parameter names included (``main.N``), with
    ``batch_norm=True``. GroupNorm is the default: batch statistics mix the images of a batch, differ between real and
    generated batches, and need synchronising over ranks.
    """

    def __init__(
        self,
        *,
        channels: int = 64,
        layers: int = 3,
        in_channels: int = 3,
        batch_norm: bool = False,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        widths = [channels * min(2**n, 8) for n in range(layers + 1)]
        main: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for n in range(1, layers + 1):
            main += [
                nn.Conv2d(widths[n - 1], widths[n], 4, stride=2 if n < layers else 1, padding=1, bias=not batch_norm),
                nn.BatchNorm2d(widths[n]) if batch_norm else GroupNorm(widths[n], norm_groups),
                nn.LeakyReLU(0.2),
            ]
        main.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*main)
        self.apply(_init)

    def forward(self, image: Tensor) -> Tensor:
        return self.main(image)


def _init(module: nn.Module) -> None:
    """Weights N(0, 0.02), norm gains N(1, 0.02) (arXiv:1511.06434, section 3)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)

"""Conditions and seeds in, images out: conditioning, sampler, decoder; also from a given image, or around a hole."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from latentdiff.config.errors import InputError
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.guidance import Autoguidance, ClassifierGuidance
from latentdiff.diffusion.noise import seeded_noise
from latentdiff.generation.fill import filled
from latentdiff.generation.img2img import last_steps
from latentdiff.generation.repaint import Known, Repaint, latent_hole
from latentdiff.types import Batch, Codec, Conditioner, Conditioning, Conditions, Guidance, OnStep, Path, Sampler

ROUNDING = "round((clamp(x, -1, 1) + 1) * 127.5)"
"""What ``to_uint8`` does, for protocol cards."""


class LatentPipeline:
    """Makes images of latent size ``image_size / codec.factor`` with a trained denoiser.

    Image i depends on its own condition and on ``seeds[i]`` alone: the noise it starts from and the noise of every step
    are drawn on the CPU per seed, so batch size, device and number of ranks change rounding at most.

    Args:
        denoiser: in eval mode; usually the averaged weights. Its device is the pipeline's.
        conditioner: batch -> conditioning, and the null conditioning that guidance compares with; in eval mode.
        codec: the frozen stage one.
        sampler: see ``diffusion.samplers``.
        grid: (path, steps, t_max) -> times, see ``diffusion.grids``.
        steps: of the grid.
        guidance: see ``diffusion.guidance``; one with a network is moved to the denoiser's device.
        image_size: pixels of a side, or (height, width); multiples of ``codec.factor``.
        precision: autocast dtype of conditioner and denoiser, None for float32. Sampler and decoder run in float32.

    Raises:
        InputError: ``image_size`` does not fit the codec, or the grid refuses the path or the number of steps.
    """

    def __init__(
        self,
        *,
        denoiser: Denoiser,
        conditioner: Conditioner,
        codec: Codec,
        sampler: Sampler,
        grid: Callable[[Path, int, float], Tensor],
        steps: int,
        guidance: Guidance,
        image_size: int | tuple[int, int],
        precision: torch.dtype | None = None,
    ):
        self.denoiser, self.conditioner, self.codec = denoiser, conditioner, codec
        self.sampler, self.guidance, self.precision = sampler, guidance, precision
        self.latent_shape = _latent_shape(codec, image_size)
        self.times = grid(denoiser.path, steps, denoiser.t_max)
        if isinstance(guidance, nn.Module):
            guidance.to(self.device).eval()

    def of_size(self, image_size: int | tuple[int, int]) -> LatentPipeline:
        """The same networks at another size, which they may not have been trained on.

        Raises InputError where it is no multiple of what the codec and the networks need.
        """
        networks = [self.denoiser.backbone]
        if isinstance(self.guidance, ClassifierGuidance):
            networks.append(self.guidance.classifier)
        if isinstance(self.guidance, Autoguidance):
            networks.append(self.guidance.guide.backbone)
        below = math.lcm(*(getattr(network, "factor", 1) for network in networks))
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if any(side % (self.codec.factor * below) for side in sides):
            raise InputError(
                f"size: expected multiples of {self.codec.factor * below} (latents are 1 / {self.codec.factor} as high "
                f"and wide, and the network takes multiples of {below}), got {sides[0]}x{sides[1]}"
            )
        other = copy.copy(self)
        other.latent_shape = _latent_shape(self.codec, sides)
        return other

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def __call__(self, batch: Batch, seeds: list[int], *, negative: Batch | None = None) -> Tensor:
        """uint8 (B, 3, H, W) on the denoiser's device."""
        return self.decode(self.latents(batch, seeds, negative=negative), batch)

    @torch.no_grad()  # and not inference mode: classifier guidance takes gradients inside
    def latents(
        self,
        batch: Batch,
        seeds: list[int],
        on_step: OnStep | None = None,
        *,
        negative: Batch | None = None,
        strength: float | None = None,
        repaint: Repaint | None = None,
    ) -> Tensor:
        """Whitened latents (B, C, h, w), float32, where the sampler ends.

        ``on_step`` is the sampler's, called ``count_steps`` times. Classifier guidance steers to ``batch.label``.

        Args:
            negative: what guidance leads away from, sample by sample, in place of the empty condition.
            strength: image-to-image: begins at ``batch.image`` with noise, see ``img2img.last_steps``. None: at noise.
            repaint: makes ``batch.mask``'s hole of ``batch.image`` alone, and keeps the latents around it; for models
                that read no mask themselves.

        Raises:
            InputError: a sample has no label for the classifier, image or mask is wanted and missing or of another
                size, or strength and jumps do not fit the number of steps.
        """
        self._check(batch, seeds)
        device, path = self.device, self.denoiser.path
        times = self._times(strength)
        batch = batch.to(device)
        negative = None if negative is None else negative.to(device)
        with self._autocast():
            conditions = self._conditions(batch, negative)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            with self._autocast():
                return self.guidance(self.denoiser, x_t, t, conditions)

        def noise(name: str) -> Tensor:
            return _sent(seeded_noise(seeds, name, self.latent_shape), device)

        if strength is None:  # the marginal for whitened data of variance 1; standard normal where that is preserved
            alpha, sigma = path.alpha_sigma(times[0])
            x = torch.sqrt(alpha**2 + sigma**2) * noise("start")
        else:
            x = path.mix(self._encode(batch), noise("start"), times[0].to(device).expand(len(batch)))
        if repaint is None:
            return self.sampler(denoise, path, x, times, lambda step: noise(f"step {step}"), on_step)
        return repaint(self.sampler, denoise, path, x, times, self._known(batch), noise, on_step)

    def count_steps(self, strength: float | None = None, repaint: Repaint | None = None) -> int:
        """How many steps ``latents`` makes. Raises InputError where strength or jumps do not fit."""
        steps = len(self._times(strength)) - 1
        return steps if repaint is None else repaint.count(steps)

    @torch.inference_mode()
    def decode(self, latents: Tensor, around: Batch | None = None) -> Tensor:
        """Whitened latents (B, C, h, w) -> images, uint8 (B, 3, H, W), through the decoder in float32.

        Where the batch ``around`` has masks, its known pixels are put over the images, and these go through the codec
        once more: what is known is then as good as the codec can say it, also in cells that lie partly in the hole and
        where the decoded hole reaches beyond its own cells.
        """
        with torch.autocast(self.device.type, enabled=False):
            images = to_uint8(self.codec.decode(latents.float()))
        if around is None or around.mask is None:
            return images
        around = around.to(self.device)
        images = torch.where(around.mask > 0, images, around.image)
        return self.decode(self._encode(replace(around, image=images)))

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {
            "sampler": _about(self.sampler),
            "guidance": _about(self.guidance),
            "steps": len(self.times) - 1,
            "times": [round(float(t), 6) for t in self.times],
            "path": _about(self.denoiser.path),
            "prediction": _about(self.denoiser.parameterization),
            "latent_shape": list(self.latent_shape),
            "precision": str(self.precision or torch.float32).removeprefix("torch."),
            "decoder_precision": "float32",
            "to_uint8": ROUNDING,
            "device": self.device.type,
        }

    def _conditions(self, batch: Batch, negative: Batch | None) -> Conditions:
        guide = self.guidance.conditioner if isinstance(self.guidance, Autoguidance) else None
        return Conditions(
            cond=self.conditioner(batch, self.codec),
            null=self.conditioner.null(batch, self.codec) if negative is None else self._negative(negative),
            alone=self.conditioner.alone(batch, self.codec) if getattr(self.guidance, "parts", ()) else {},
            label=batch.label,
            guide=None if guide is None else guide(batch, self.codec),
        )

    def _negative(self, negative: Batch) -> Conditioning:
        """Of the negative captions, with every other part absent that training drops: guidance leads to those parts."""
        captions_alone = getattr(self.conditioner, "captions_alone", self.conditioner)
        return captions_alone(negative, self.codec)

    def _check(self, batch: Batch, seeds: list[int]) -> None:
        if len(seeds) != len(batch):
            raise ValueError(f"one seed per sample is needed; got {len(seeds)} seeds for a batch of {len(batch)}")
        if self.denoiser.training:
            raise ValueError("the denoiser is in training mode, its dropout would be active; call .eval() on it")
        if isinstance(self.guidance, ClassifierGuidance) and self.guidance.scale != 0:
            self.guidance.classifier.check_labels(batch.label, batch.keys)

    def _times(self, strength: float | None) -> Tensor:
        return self.times if strength is None else last_steps(self.times, strength)

    def _known(self, batch: Batch) -> Known:
        """The latents around the hole, of images whose hole is filled from what is around it: nothing of what stood in
        it gets into them."""
        mask = self._of_image_size("mask", batch.mask)
        hole = latent_hole(mask, self.codec.factor)
        return Known(self._encode(batch, mask.float()), hole)

    def _encode(self, batch: Batch, hole: Tensor | None = None) -> Tensor:
        """Whitened posterior mean of the images, in float32; with ``hole`` (B, 1, H, W) filled there before."""
        image = self._of_image_size("image", batch.image).float() / 127.5 - 1.0
        with torch.autocast(self.device.type, enabled=False):
            mean, std = self.codec.moments(image if hole is None else filled(image, hole))
            return self.codec.draw((mean, std), torch.zeros_like(mean))

    def _of_image_size(self, name: str, given: Tensor | None) -> Tensor:
        expected = tuple(side * self.codec.factor for side in self.latent_shape[1:])
        got = None if given is None else tuple(given.shape[-2:])
        if got != expected:
            raise InputError(
                f"{name}: expected one of {expected[0]}x{expected[1]} pixels per sample, "
                + ("the batch has none" if got is None else f"got {got[0]}x{got[1]}")
            )
        return given

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision is not None)


class Reconstruction:
    """Real images that only go through stage one (posterior mean): the bound that no sample of stage two can pass.

    Called like a pipeline; the seeds do nothing.
    """

    def __init__(self, *, codec: Codec, device: torch.device | str):
        self.codec, self.device = codec, torch.device(device)

    @torch.inference_mode()
    def __call__(self, batch: Batch, seeds: list[int]) -> Tensor:
        """``batch.image`` -> uint8 (B, 3, H, W)."""
        if batch.image is None:
            raise InputError("reconstructions need images, the batch has none")
        with torch.autocast(self.device.type, enabled=False):
            mean, std = self.codec.moments(batch.image.to(self.device).float() / 127.5 - 1.0)
            return to_uint8(self.codec.decode(self.codec.draw((mean, std), torch.zeros_like(mean))))

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        told = {"reconstruction": "posterior mean", "decoder_precision": "float32", "to_uint8": ROUNDING}
        return {**told, "device": self.device.type}


def _latent_shape(codec: Codec, image_size: int | tuple[int, int]) -> tuple[int, int, int]:
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if min(size) < codec.factor or any(side % codec.factor for side in size):
        raise InputError(f"image_size must be a multiple of the first stage's factor {codec.factor}; got {size}")
    return codec.channels, size[0] // codec.factor, size[1] // codec.factor


def to_uint8(image: Tensor) -> Tensor:
    """round((clamp(x, -1, 1) + 1) * 127.5) of float images in [-1, 1]."""
    return ((image.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


def _sent(x: Tensor, device: torch.device) -> Tensor:
    """From the CPU to the device, which is not waited for."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def _about(part: object) -> dict[str, object]:
    """Class and plain settings of a part, or what it says of itself."""
    if hasattr(part, "describe"):
        return part.describe()
    plain = (bool, int, float, str, Mapping)
    settings = {k: v for k, v in vars(part).items() if isinstance(v, plain) and not k.startswith("_")}
    return {"name": type(part).__name__, **settings}

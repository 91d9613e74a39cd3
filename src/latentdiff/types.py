"""What the parts of latentdiff hand to each other: the batch, the conditioning, and the protocols that parts obey.

Symbols follow docs/math.md: t in [0, 1] with 0 = data and 1 = noise, ``x_t = alpha(t) x0 + sigma(t) noise``.
Shapes: B samples, (H, W) pixels, (C, h, w) latents, (L, D) tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

UNLABELLED = 255
"""In a segmentation map: a pixel of no class."""


@dataclass
class Batch:
    """One rank's consecutive part of a global batch, as the loader delivers it.

    ``number``, ``start`` and ``total`` say which part: every random draw of training depends on the seed, the
    batch number and the sample's position in the global batch alone (see ``diffusion.noise``).
    """

    keys: list[str]
    image: Tensor | None = None
    """uint8 (B, 3, H, W)."""
    caption: list[str] | None = None
    """One string per sample, empty where the sample has none."""
    label: Tensor | None = None
    """int64 (B,), -1 where the sample has none."""
    segmentation: Tensor | None = None
    """uint8 (B, H, W): the class of each pixel, ``UNLABELLED`` where it has none."""
    mask: Tensor | None = None
    """uint8 (B, 1, H, W): 1 where the image is to be made, 0 where it is known."""
    low_res: Tensor | None = None
    """uint8 (B, 3, H', W'), smaller than the image."""
    size: Tensor | None = None
    """int64 (B, 6): height and width of the original, top and left of the crop, height and width of the result (SDXL,
    arXiv:2307.01952, section 2.2); the crop's in pixels of the result's scale."""
    numbers: Tensor | None = None
    """float32 (B, K): numbers that tell of each image, as a condition of one's own makes them (docs/extending.md)."""
    latent_mean: Tensor | None = None
    """(B, C, h, w) of the raw posterior (see ``Codec.moments``), from a cache; ``latent_std`` beside it."""
    latent_std: Tensor | None = None
    text_tokens: Tensor | None = None
    """(B, L, D), the caption as a frozen text encoder gave it, from a cache; likewise ``text_mask``, bool (B, L), and
    ``text_vector``, (B, V), where that encoder has them."""
    text_mask: Tensor | None = None
    text_vector: Tensor | None = None
    attributes: list[dict] | None = None
    """The sample's parsed ``.json``."""
    number: int = 0
    """Global batches seen before this one since training began."""
    start: int = 0
    """Position of the first sample in the global batch."""
    total: int | None = None
    """Samples in the global batch; ``len(self)`` when None."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def global_size(self) -> int:
        return len(self) if self.total is None else self.total

    def cut(self, size: int | None) -> list[Batch]:
        """Consecutive parts of at most ``size`` samples; the whole where None. ``start`` moves along: draws stay."""
        if size is None or size >= len(self):
            return [self]
        return [self.rows(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def rows(self, start: int, stop: int) -> Batch:
        """Samples ``start`` to ``stop`` of this part, still of the same global batch."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        sliced: dict[str, Any] = {n: v[start:stop] for n, v in values.items() if isinstance(v, Tensor | list)}
        return replace(self, **sliced, start=self.start + start, total=self.global_size)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """With every tensor on the device."""
        return self._each_tensor(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._each_tensor(Tensor.pin_memory)

    def _each_tensor(self, change: Callable[[Tensor], Tensor]) -> Batch:
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: change(v) for name, v in found.items() if isinstance(v, Tensor)}
        return replace(self, **changed)


@dataclass(frozen=True)
class Conditioning:
    """What a backbone is conditioned on; each part may be absent."""

    tokens: Tensor | None = None
    """(B, L, D), read through cross-attention."""
    mask: Tensor | None = None
    """bool (B, L), True where a token is real."""
    vector: Tensor | None = None
    """(B, V), added to the time embedding."""
    spatial: Tensor | None = None
    """(B, S, h, w), concatenated to the latent."""
    label: Tensor | None = None
    """int64 (B,), read by the backbone's own class table."""

    def where(self, keep: Tensor, null: Conditioning) -> Conditioning:
        """This conditioning where ``keep`` (bool, (B,)) is true, ``null`` elsewhere."""
        return self._zip(null, lambda a, b: torch.where(keep.to(a.device).view(-1, *[1] * (a.ndim - 1)), a, b))

    def cat(self, other: Conditioning) -> Conditioning:
        """Both along the batch axis; both must have the same parts."""
        return self._zip(other, lambda a, b: torch.cat([a, b]))

    def expand(self, count: int) -> Conditioning:
        """This conditioning of one sample for ``count`` of them, without a copy."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        expanded = {name: v.expand(count, *[-1] * (v.ndim - 1)) for name, v in parts.items() if v is not None}
        return Conditioning(**expanded)

    def _zip(self, other: Conditioning, combine: Callable[[Tensor, Tensor], Tensor]) -> Conditioning:
        joined = {}
        for f in fields(self):
            a, b = getattr(self, f.name), getattr(other, f.name)
            if (a is None) != (b is None):
                raise ValueError(f"conditionings differ in their parts: '{f.name}' is present in only one of them")
            joined[f.name] = None if a is None else combine(a, b)
        return Conditioning(**joined)


@dataclass(frozen=True)
class Conditions:
    """The conditioning of a batch beside what guidance compares it with."""

    cond: Conditioning
    null: Conditioning
    """Of the empty condition, or of a negative prompt."""
    alone: Mapping[str, Conditioning] = field(default_factory=dict)
    """Name of a part -> that part alone, every other part null: several conditions, each with its own scale."""
    label: Tensor | None = None
    """int64 (B,), the classes that classifier guidance steers to."""
    guide: Conditioning | None = None
    """What autoguidance's second denoiser reads, where it has a conditioner of its own."""


class Path(Protocol):
    """A Gaussian probability path ``x_t = alpha(t) x0 + sigma(t) noise``."""

    @property
    def steps(self) -> int | None:
        """Entries of a discrete path's table."""
        ...

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]: ...
    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]: ...
    def log_snr(self, t: Tensor) -> Tensor: ...
    def time_at(self, log_snr: Tensor) -> Tensor: ...
    def mix(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...
    def network_time(self, t: Tensor) -> Tensor: ...


class Parameterization(Protocol):
    """What the network reads and predicts, and how x0 follows from it."""

    def network_input(self, x_t: Tensor, path: Path, t: Tensor) -> Tensor: ...
    def target(self, x0: Tensor, noise: Tensor, path: Path, t: Tensor) -> Tensor: ...
    def to_x0(self, output: Tensor, x_t: Tensor, path: Path, t: Tensor) -> Tensor: ...
    def x0_gain(self, path: Path, t: Tensor) -> Tensor: ...


class Backbone(Protocol):
    """(B, C, h, w), network time (B,), conditioning -> (B, C, h, w)."""

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor: ...


class Codec(Protocol):
    """Frozen stage one with per-channel whitening: latents have mean 0 and variance 1 over the training data."""

    channels: int
    factor: int

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]: ...
    def draw(self, moments: tuple[Tensor, Tensor], noise: Tensor) -> Tensor: ...
    def decode(self, z: Tensor) -> Tensor: ...


@runtime_checkable
class Conditioner(Protocol):
    """Turns a batch into conditioning. With ``draws`` (training), drops each of its parts per sample with that part's
    probability.

    ``null`` is what guidance compares with: the parts that training drops are absent, the others as in ``batch``.
    ``alone``: name of a part that training drops -> the condition with every other such part absent. ``dropped``: name
    of a part -> bool (B,), which samples ``draws`` takes it from.
    """

    drop: float
    """Largest probability of a part's being dropped; 0: there is nothing for guidance to compare with."""
    parts: Sequence[str]
    """Names of what ``alone`` gives, each of which guidance can scale by itself."""

    def __call__(self, batch: Batch, codec: Codec | None = None, draws: object | None = None) -> Conditioning: ...
    def null(self, batch: Batch, codec: Codec | None = None) -> Conditioning: ...
    def alone(self, batch: Batch, codec: Codec | None = None) -> dict[str, Conditioning]: ...
    def dropped(self, draws: object) -> dict[str, Tensor]: ...


Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, C, h, w), t (B,)) -> x0_hat (B, C, h, w)."""

NoiseAt = Callable[[int], Tensor]
"""Step number -> standard normal noise of the state's shape."""

OnStep = Callable[[int, Tensor, Tensor, Tensor], Tensor | None]
"""(step, t_next 0-dim, x at t_next, x0_hat) -> replacement of x, or None to go on with it."""


class Sampler(Protocol):
    """Solves from ``x`` at ``times[0]`` down to ``times[-1]``; keeps no state between calls."""

    def __call__(
        self, denoise: Denoise, path: Path, x: Tensor, times: Tensor, noise_at: NoiseAt, on_step: OnStep | None = None
    ) -> Tensor: ...


class Guidance(Protocol):
    """Combines the denoiser's answers under several conditions into one x0_hat.

    ``needs_null``: the answer depends on ``conditions.null``, which only a model trained with condition dropout knows.
    """

    @property
    def needs_null(self) -> bool: ...

    def __call__(self, denoiser: object, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor: ...


Column = Tensor | list
"""One entry per image: a tensor (N, ...), or a list of what JSON can say."""


class Rows(Protocol):
    """What was measured of images 0 .. N - 1, by column, in the order of their indices."""

    def __len__(self) -> int: ...

    def column(self, name: str) -> Any:
        """The whole ``Column`` as the metric made it, tensors on the CPU. KeyError where there is none."""
        ...

    def blocks(self, name: str) -> Iterator[Tensor]:
        """The same tensor in consecutive parts of a size that depends on nothing but the evaluation's chunks."""
        ...


class Metric(Protocol):
    """Rows of images, and results from the rows of all images. Keeps nothing between calls, so that which process
    measured which images, and when, changes nothing."""

    def measure(self, images: Tensor, batch: Batch) -> Mapping[str, Column]:
        """Images, uint8 (B, 3, H, W), made for ``batch``, whose first has the index ``batch.start`` -> its columns."""
        ...

    def result(self, rows: Rows) -> dict[str, object]:
        """JSON-ready numbers, by name."""
        ...

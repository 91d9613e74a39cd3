"""What a batch holds beside image, caption and label, made sample by sample: maps, masks, small images, sizes,
numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.config.faults import did_you_mean
from latentdiff.data.sample import Sample
from latentdiff.data.shard_set import ShardSet

FIELDS = ("segmentation", "mask", "low_res", "size", "numbers")
"""Fields of ``Batch`` that a condition can make."""


@dataclass(frozen=True)
class Frame:
    """Which part of an image became the training image, in pixels of the upright original."""

    height: int
    width: int
    """Of the original."""
    top: int
    left: int
    """The part's upper left corner."""
    crop_height: int
    crop_width: int
    mirrored: bool
    """The part was mirrored after it was cut out."""
    out_height: int
    out_width: int
    """Of the training image."""

    def lay(self, values: np.ndarray) -> Tensor:
        """A map (H, W) of the original's size, as the training image was cut, resized and mirrored: (out_height,
        out_width).

        Each pixel takes the value at its centre, so that no value is mixed; where the centre lies between two pixels
        of the original, the right or lower one's (of an image that is mirrored afterwards, its mirror image).
        """
        rows, columns = nearest(self.crop_height, self.out_height), nearest(self.crop_width, self.out_width)
        columns = self.left + (columns[::-1] if self.mirrored else columns)
        return torch.from_numpy(np.ascontiguousarray(values[self.top + rows][:, columns]))


def nearest(length: int, size: int) -> np.ndarray:
    """int64 (size,): of ``length`` pixels in a row, those in which the centres of ``size`` equal parts lie."""
    return (2 * np.arange(size) + 1) * length // (2 * size)


class Condition(Protocol):
    """Makes one field of ``Batch``."""

    def check(self, shards: ShardSet) -> None:
        """InputError where samples lack the files that it needs; reads no file."""

    def __call__(self, sample: Sample, frame: Frame, image: Tensor, rng: np.random.Generator) -> Tensor:
        """One sample's value of the field, without the batch axis.

        ``image`` is the training image, uint8 (3, H, W); ``frame`` says how it was cut from ``sample.pixels``.
        ``rng`` is the only source of chance. Raises InputError where the sample does not fit the configuration,
        BrokenSampleError where one of its files is damaged.
        """


def check_fields(conditions: Mapping[str, Condition]) -> None:
    """InputError where a name is no field of a batch that a condition can make."""
    for name in conditions:
        if name not in FIELDS:
            near = did_you_mean(str(name), FIELDS)
            raise InputError(f"conditions: a batch has no field '{name}'; expected {', '.join(FIELDS)}{near}")


def check_value(name: str, value: Tensor, height: int, width: int) -> None:
    """InputError where ``value``, one sample's, is not what ``Batch`` says of the field, for images of this size."""
    shape, dtype = tuple(value.shape), value.dtype
    wanted: tuple[torch.dtype, tuple[int, ...]] = {
        "segmentation": (torch.uint8, (height, width)),
        "mask": (torch.uint8, (1, height, width)),
        "low_res": (torch.uint8, (3, *shape[1:])),
        "size": (torch.int64, (6,)),
        "numbers": (torch.float32, (value.numel(),)),
    }[name]
    smaller = name != "low_res" or (len(shape) == 3 and shape[1] < height and shape[2] < width)
    if (dtype, shape) != wanted or not smaller:
        expected = "(3, H', W') smaller than the image" if name == "low_res" else wanted[1]
        raise InputError(
            f"conditions: what is given for '{name}' makes {dtype} of shape {shape}, expected {wanted[0]} of shape "
            f"{expected}; is it meant for another field?"
        )

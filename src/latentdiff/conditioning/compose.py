"""Several conditions at once, each dropped by itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import cast

import torch
from torch import Tensor, nn

from latentdiff.conditioning.dropping import check_drop, dropped_samples
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.types import Batch, Codec, Conditioner, Conditioning

TOGETHER = "together"
"""Name of the draw that takes all parts away; no part may be called so."""


class Composite(nn.Module):
    """Named conditioners joined: tokens one after the other, vectors and spatial conditions along their channels.

    In training each part is dropped with its own probability, and all that have one together with probability
    ``drop``: InstructPix2Pix (arXiv:2211.09800, section 3.2.1) takes 0.05 for each and for both. A part whose own
    probability is 0 is always there, with guidance too: ``null`` keeps it, and ``parts`` does not name it.

    Raises InputError without parts, for nested composites, for a ``drop`` without a part that can be dropped, and, when
    called, for parts that cannot be joined.
    """

    def __init__(self, *, parts: Mapping[str, Conditioner], drop: float = 0.0):
        super().__init__()
        if not parts:
            raise InputError("Composite: give at least one part, e.g. conditioner.module.parts={text: ...}")
        if TOGETHER in parts or any(isinstance(part, Composite) for part in parts.values()):
            raise InputError(f"Composite: a part may be neither called '{TOGETHER}' nor a composite itself")
        self.members = nn.ModuleDict(cast(Mapping[str, nn.Module], parts))
        self.parts = tuple(name for name, part in parts.items() if part.drop > 0)
        if check_drop(drop) > 0 and not self.parts:
            raise InputError(
                f"Composite: drop is {drop}, but no part has a drop of its own above 0; give one to those that go"
            )
        self.together = drop
        self.drop = max(drop, *(part.drop for part in parts.values()))

    def forward(self, batch: Batch, codec: Codec | None = None, draws: Draws | None = None) -> Conditioning:
        if draws is None:
            return join({name: part(batch, codec) for name, part in self._members.items()})
        found = {name: part(batch, codec, draws.under(name)) for name, part in self._members.items()}
        if self.together:
            keep = ~dropped_samples(draws, TOGETHER, self.together)
            for name in self.parts:
                found[name] = found[name].where(keep, self._members[name].null(batch, codec))
        return join(found)

    def null(self, batch: Batch, codec: Codec | None = None) -> Conditioning:
        return join(self._without(batch, codec))

    def alone(self, batch: Batch, codec: Codec | None = None) -> dict[str, Conditioning]:
        without = self._without(batch, codec)
        return {name: join({**without, name: self._members[name](batch, codec)}) for name in self.parts}

    def captions_alone(self, batch: Batch, codec: Codec | None = None) -> Conditioning:
        """The parts that read captions, every other part absent that training drops: what a negative prompt gives."""
        reading = {name: part for name, part in self._members.items() if hasattr(part, "cut_captions")}
        return join({**self._without(batch, codec), **{name: part(batch, codec) for name, part in reading.items()}})

    def dropped(self, draws: Draws) -> dict[str, Tensor]:
        together = dropped_samples(draws, TOGETHER, self.together)
        each = {name: self._members[name].dropped(draws.under(name)) for name in self.parts}
        return {name: together | torch.stack([*found.values()]).any(0) for name, found in each.items()}

    @property
    def truncated(self) -> int:
        """Captions that were cut at their parts' limits so far. AttributeError where no part reads captions."""
        counts = [int(part.truncated) for part in self._members.values() if hasattr(part, "truncated")]
        if not counts:
            raise AttributeError("no part of this composite reads captions")
        return sum(counts)

    def cut_captions(self, captions: list[str]) -> list[tuple[str, int]]:
        """The captions that some part has to cut, each with the number of its tokens there."""
        found: dict[str, int] = {}
        for part in self._members.values():
            if hasattr(part, "cut_captions"):
                found |= dict(part.cut_captions(captions))
        return list(found.items())

    def _without(self, batch: Batch, codec: Codec | None) -> dict[str, Conditioning]:
        """Each part's condition: none of the parts that training drops, the others whole."""
        return {
            name: part.null(batch, codec) if name in self.parts else part(batch, codec)
            for name, part in self._members.items()
        }

    @property
    def _members(self) -> dict[str, Conditioner]:
        return cast(dict[str, Conditioner], dict(self.members.items()))


def join(found: Mapping[str, Conditioning]) -> Conditioning:
    """One conditioning of several, named for messages. Masks are joined where any part has one, true elsewhere.

    Raises InputError where tokens differ in width, spatial conditions in size, or two parts give a class index.
    """
    have: dict[str, dict[str, Tensor]] = {f.name: _given(found, f.name) for f in fields(Conditioning)}
    _check_equal("tokens", "width", {name: tokens.shape[-1] for name, tokens in have["tokens"].items()})
    _check_equal("spatial", "size", {name: tuple(maps.shape[-2:]) for name, maps in have["spatial"].items()})
    if len(have["label"]) > 1:
        raise InputError(f"Composite: {' and '.join(have['label'])} both give the backbone a class index; one can")
    masks = [have["mask"].get(name, _all_true(tokens)) for name, tokens in have["tokens"].items()]
    return Conditioning(
        tokens=_cat(have["tokens"].values()),
        mask=_cat(masks) if have["mask"] else None,
        vector=_cat(have["vector"].values()),
        spatial=_cat(have["spatial"].values()),
        label=next(iter(have["label"].values()), None),
    )


def _given(found: Mapping[str, Conditioning], part: str) -> dict[str, Tensor]:
    """Of those that have it."""
    return {name: value for name, cond in found.items() if (value := getattr(cond, part)) is not None}


def _cat(parts: Collection[Tensor]) -> Tensor | None:
    return torch.cat(list(parts), dim=1) if parts else None


def _all_true(tokens: Tensor) -> Tensor:
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


def _check_equal(what: str, measure: str, values: Mapping[str, object]) -> None:
    if len(set(values.values())) > 1:
        listed = ", ".join(f"{value} from {name}" for name, value in values.items())
        raise InputError(f"Composite: the {what} of all parts must have one {measure}, they have {listed}")

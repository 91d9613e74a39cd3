"""Several conditions at once, each dropped by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

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
        self.members = nn.ModuleDict(parts)
        self.parts = tuple(name for name, part in parts.items() if part.drop > 0)
        if check_drop(drop) > 0 and not self.parts:
            raise InputError(
                f"Composite: drop is {drop}, but no part has a drop of its own above 0; give one to those that go"
            )
        self.together = drop
        self.drop = max(drop, *(part.drop for part in parts.values()))

    def forward(self, batch: Batch, codec: Codec | None = None, draws: Draws | None = None) -> Conditioning:
        if draws is None:
            return join({name: part(batch, codec) for name, part in self.members.items()})
        found = {name: part(batch, codec, draws.under(name)) for name, part in self.members.items()}
        if self.together:
            keep = ~dropped_samples(draws, TOGETHER, self.together)
            for name in self.parts:
                found[name] = found[name].where(keep, self.members[name].null(batch, codec))
        return join(found)

    def null(self, batch: Batch, codec: Codec | None = None) -> Conditioning:
        return join(self._without(batch, codec))

    def alone(self, batch: Batch, codec: Codec | None = None) -> dict[str, Conditioning]:
        without = self._without(batch, codec)
        return {name: join({**without, name: self.members[name](batch, codec)}) for name in self.parts}

    def captions_alone(self, batch: Batch, codec: Codec | None = None) -> Conditioning:
        """The parts that read captions, every other part absent that training drops: what a negative prompt gives."""
        reading = {name: part for name, part in self.members.items() if hasattr(part, "cut_captions")}
        return join({**self._without(batch, codec), **{name: part(batch, codec) for name, part in reading.items()}})

    def dropped(self, draws: Draws) -> dict[str, Tensor]:
        together = dropped_samples(draws, TOGETHER, self.together)
        each = {name: self.members[name].dropped(draws.under(name)) for name in self.parts}
        return {name: together | torch.stack([*found.values()]).any(0) for name, found in each.items()}

    @property
    def truncated(self) -> int:
        """Captions that were cut at their parts' limits so far. AttributeError where no part reads captions."""
        counts = [part.truncated for part in self.members.values() if hasattr(part, "truncated")]
        if not counts:
            raise AttributeError("no part of this composite reads captions")
        return sum(counts)

    def cut_captions(self, captions: list[str]) -> list[tuple[str, int]]:
        """The captions that some part has to cut, each with the number of its tokens there."""
        found = {}
        for part in self.members.values():
            if hasattr(part, "cut_captions"):
                found |= dict(part.cut_captions(captions))
        return list(found.items())

    def _without(self, batch: Batch, codec: Codec | None) -> dict[str, Conditioning]:
        """Each part's condition: none of the parts that training drops, the others whole."""
        return {
            name: part.null(batch, codec) if name in self.parts else part(batch, codec)
            for name, part in self.members.items()
        }


def join(found: Mapping[str, Conditioning]) -> Conditioning:
    """One conditioning of several, named for messages. Masks are joined where any part has one, true elsewhere.

    Raises InputError where tokens differ in width, spatial conditions in size, or two parts give a class index.
    """
    have = {f.name: {n: c for n, c in found.items() if getattr(c, f.name) is not None} for f in fields(Conditioning)}
    _check_equal("tokens", "width", {name: c.tokens.shape[-1] for name, c in have["tokens"].items()})
    _check_equal("spatial", "size", {name: tuple(c.spatial.shape[-2:]) for name, c in have["spatial"].items()})
    if len(have["label"]) > 1:
        raise InputError(f"Composite: {' and '.join(have['label'])} both give the backbone a class index; one can")
    tokens = [c.tokens for c in have["tokens"].values()]
    masks = [_mask(c) for c in have["tokens"].values()] if have["mask"] else []
    return Conditioning(
        tokens=torch.cat(tokens, dim=1) if tokens else None,
        mask=torch.cat(masks, dim=1) if masks else None,
        vector=_cat([c.vector for c in have["vector"].values()]),
        spatial=_cat([c.spatial for c in have["spatial"].values()]),
        label=next((c.label for c in have["label"].values()), None),
    )


def _cat(parts: list[Tensor]) -> Tensor | None:
    return torch.cat(parts, dim=1) if parts else None


def _mask(cond: Conditioning) -> Tensor:
    if cond.mask is not None:
        return cond.mask
    return torch.ones(cond.tokens.shape[:2], dtype=torch.bool, device=cond.tokens.device)


def _check_equal(what: str, measure: str, values: Mapping[str, object]) -> None:
    if len(set(values.values())) > 1:
        listed = ", ".join(f"{value} from {name}" for name, value in values.items())
        raise InputError(f"Composite: the {what} of all parts must have one {measure}, they have {listed}")

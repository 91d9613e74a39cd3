"""The class of an image: as a token, as a vector, or as an index into the backbone's own table."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentdiff.conditioning.dropping import check_drop, dropped_samples
from latentdiff.conditioning.reading import field_of
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.types import Batch, Codec, Conditioning


class ClassTokens(nn.Module):
    """Label -> one learned token (B, 1, width), as LDM's class models read it (arXiv:2112.10752, appendix E.2.1).

    Args:
        classes: of the data; the table has one row more, the last: no class. Label -1 reads it too.
        width: of the token.
        drop: probability that training sees no class instead.

    Raises:
        InputError: fewer than one class, a ``drop`` that is no probability; when called, a batch without labels.
    """

    parts = ("class",)

    def __init__(self, *, classes: int, width: int, drop: float = 0.1):
        super().__init__()
        self.classes, self.drop = check_classes(classes), check_drop(drop)
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, batch: Batch, codec: Codec | None = None, draws: Draws | None = None) -> Conditioning:
        rows = _rows(batch, self.classes, None if draws is None else self.dropped(draws)["class"])
        return Conditioning(tokens=self.table(rows)[:, None])

    def null(self, batch: Batch, codec: Codec | None = None) -> Conditioning:
        return Conditioning(tokens=self.table(_no_class(batch, self.classes, self.table.weight.device))[:, None])

    def alone(self, batch: Batch, codec: Codec | None = None) -> dict[str, Conditioning]:
        return {"class": self(batch, codec)}

    def dropped(self, draws: Draws) -> dict[str, Tensor]:
        return {"class": dropped_samples(draws, "class", self.drop)}


class ClassVector(nn.Module):
    """Label -> a learned vector (B, width), which the backbone adds to its time embedding through two layers.

    Unlike ``ClassIndex`` it can stand beside other parts of the vector (``Composite``). Arguments and errors are those
    of ``ClassTokens``; ``width`` is that of the vector.
    """

    parts = ("class",)

    def __init__(self, *, classes: int, width: int, drop: float = 0.1):
        super().__init__()
        self.classes, self.drop = check_classes(classes), check_drop(drop)
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, batch: Batch, codec: Codec | None = None, draws: Draws | None = None) -> Conditioning:
        rows = _rows(batch, self.classes, None if draws is None else self.dropped(draws)["class"])
        return Conditioning(vector=self.table(rows))

    def null(self, batch: Batch, codec: Codec | None = None) -> Conditioning:
        return Conditioning(vector=self.table(_no_class(batch, self.classes, self.table.weight.device)))

    def alone(self, batch: Batch, codec: Codec | None = None) -> dict[str, Conditioning]:
        return {"class": self(batch, codec)}

    def dropped(self, draws: Draws) -> dict[str, Tensor]:
        return {"class": dropped_samples(draws, "class", self.drop)}


class ClassIndex(nn.Module):
    """Label -> row (B,) of the backbone's own table, as in ADM and DiT (arXiv:2105.05233, arXiv:2212.09748).

    Args:
        classes: of the data; the backbone needs ``num_classes = classes + 1``, the last row for no class.
        drop: probability that training sees no class instead.

    Raises:
        InputError: as ``ClassTokens``.
    """

    parts = ("class",)

    def __init__(self, *, classes: int, drop: float = 0.1):
        super().__init__()
        self.classes, self.drop = check_classes(classes), check_drop(drop)

    def forward(self, batch: Batch, codec: Codec | None = None, draws: Draws | None = None) -> Conditioning:
        return Conditioning(label=_rows(batch, self.classes, None if draws is None else self.dropped(draws)["class"]))

    def null(self, batch: Batch, codec: Codec | None = None) -> Conditioning:
        return Conditioning(label=_no_class(batch, self.classes, None if batch.label is None else batch.label.device))

    def alone(self, batch: Batch, codec: Codec | None = None) -> dict[str, Conditioning]:
        return {"class": self(batch, codec)}

    def dropped(self, draws: Draws) -> dict[str, Tensor]:
        return {"class": dropped_samples(draws, "class", self.drop)}


def check_classes(classes: int) -> int:
    """Raises InputError below 1."""
    if classes < 1:
        raise InputError(f"conditioner classes: expected the number of classes, at least 1, got {classes}")
    return classes


def _rows(batch: Batch, classes: int, gone: Tensor | None) -> Tensor:
    """Row of each sample, the last (``classes``) for none and where ``gone``.

    Labels are held against ``classes`` where they are read. One that is too large after all is moved past the last row,
    where the table refuses it: it must not mean "no class", and looking here would wait for the device.
    """
    label = field_of(batch, "label", "use data with labels (.cls files, or data.label_field)")
    rows = torch.where(label < 0, classes, torch.where(label < classes, label, label + 1))
    return rows if gone is None else torch.where(gone.to(rows.device), classes, rows)


def _no_class(batch: Batch, classes: int, device: torch.device | None) -> Tensor:
    return torch.full((len(batch),), classes, dtype=torch.int64, device=device)

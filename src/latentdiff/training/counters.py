"""What training counts: batches and images. Lightning's global_step counts optimiser steps and is not used."""

from __future__ import annotations

from dataclasses import dataclass

from latentdiff.types import Batch


@dataclass
class Counters:
    """Progress since training began, over all ranks and all resumed runs."""

    batches_seen: int = 0
    images_seen: int = 0

    def advance(self, batch: Batch) -> None:
        self.batches_seen += 1
        self.images_seen += batch.global_size

    def as_dict(self) -> dict[str, int]:
        return {"batches_seen": self.batches_seen, "images_seen": self.images_seen}

"""How well images agree with their captions, by a network that has learned both."""

from __future__ import annotations

from torch.nn import functional as F

from latentdiff.config.errors import InputError
from latentdiff.metrics.features.base import CAPTION_CUT, POOL, TEXT, Features
from latentdiff.metrics.on_features import Naming, on_layer
from latentdiff.metrics.reference import Reference
from latentdiff.types import Batch, Rows


class ClipScore:
    """Mean of 100 max(cos, 0) between the embeddings of image and caption (Hessel et al., arXiv:2104.08718, eq. 1,
    whose factor is 2.5). Named after the network and what it puts before captions, since values of two say nothing
    about each other. Beside it the share of the captions that were longer than the network reads.

    Args:
        layer: embedding of the image.
        text: embedding of its caption.
    """

    needs_reference = False

    def __init__(self, *, layer: str = POOL, text: str = TEXT):
        self.layer, self.text = layer, text
        self.layers = (layer, text, CAPTION_CUT)

    def __call__(self, rows: Rows, reference: Reference | None, naming: Naming) -> dict[str, float]:
        total = 0.0
        for image, text in zip(rows.blocks(self.layer), rows.blocks(self.text)):
            total += float(F.cosine_similarity(image.double(), text.double(), dim=1).clamp(min=0).sum())
        cut = float(rows.column(CAPTION_CUT).double().mean())
        return dict(zip(self.names(naming), (100 * total / len(rows), cut)))

    def names(self, naming: Naming) -> list[str]:
        return [naming.by_texts(on_layer("clip_score", self.layer)), naming.by_texts("captions_cut")]

    def check(self, features: Features, count: int) -> None:
        """One image is enough."""

    def check_samples(self, batch: Batch) -> None:
        """Raises InputError where samples have no captions."""
        if batch.caption is None or not all(caption.strip() for caption in batch.caption):
            raise InputError(
                "a CLIP score compares images with their captions, these samples have none; choose data with captions, "
                "give prompts, or leave the score out"
            )

    def describe(self) -> dict[str, object]:
        return {"image": self.layer, "text": self.text, "score": "100 max(cos, 0)"}

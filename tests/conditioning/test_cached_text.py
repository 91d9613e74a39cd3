"""What holds for every conditioner is in tests/contracts."""

from __future__ import annotations

import torch
from torch import nn

from latentdiff.conditioning.cached_text import CachedText
from latentdiff.conditioning.compose import Composite
from latentdiff.conditioning.hf_text import HfText
from latentdiff.diffusion.noise import Draws
from latentdiff.types import Batch

CAPTIONS = ["a red circle", "", "a blue box on white", "a star"]


def encoded(cond) -> dict:
    return {"tokens": cond.tokens, "mask": cond.mask}


def test_gives_what_the_encoder_gives(bert) -> None:
    """Also where captions are dropped, alone and within a composite."""
    real = HfText(model=str(bert), max_length=8, drop=0.5)
    batch = Batch(keys=list("abcd"), caption=CAPTIONS)
    text = encoded(real(batch))
    stored = Batch(keys=batch.keys, text_tokens=text["tokens"], text_mask=text["mask"])
    empty = {name: value[0] for name, value in encoded(real.null(batch)).items()}
    ours = CachedText(empty=empty, drop=0.5)
    for one, two in ((ours, real), (Composite(parts={"t": ours}, drop=0.2), Composite(parts={"t": real}, drop=0.2))):
        for number in range(6):
            draws = Draws(seed=1, number=number, start=0, count=4, total=4)
            a, b = one(stored, None, draws), two(batch, None, draws)
            torch.testing.assert_close(a.tokens, b.tokens, atol=1e-6, rtol=0)
            assert torch.equal(a.mask, b.mask)
            assert all(torch.equal(one.dropped(draws)[name], gone) for name, gone in two.dropped(draws).items())
        torch.testing.assert_close(one.null(stored).tokens, two.null(batch).tokens, atol=1e-6, rtol=0)
        assert nn.ModuleDict({"c": one}).state_dict().keys() == nn.ModuleDict({"c": two}).state_dict().keys()


def test_half_precision_is_read_as_float32() -> None:
    empty = {"tokens": torch.zeros(2, 3, dtype=torch.float16), "vector": torch.zeros(4, dtype=torch.float16)}
    batch = Batch(keys=["a"], text_tokens=torch.ones(1, 2, 3).half(), text_vector=torch.ones(1, 4).half())
    ours = CachedText(empty=empty)
    for cond in (ours(batch), ours.null(batch)):
        assert cond.tokens.dtype == cond.vector.dtype == torch.float32
        assert cond.mask is None

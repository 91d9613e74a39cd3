"""Several conditions at once, of stand-ins whose conditions are plain numbers."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import nn

from latentdiff.conditioning.compose import TOGETHER, Composite, join
from latentdiff.conditioning.dropping import dropped_samples
from latentdiff.conditioning.unconditional import Unconditional
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.types import Batch, Conditioning


class Part(nn.Module):
    """Gives its number in the fields named, 0 where it is dropped."""

    parts = ("own",)

    def __init__(self, number: float, drop: float = 0.5, **shapes: tuple[int, ...]):
        super().__init__()
        self.number, self.drop, self.shapes = number, drop, shapes

    def forward(self, batch, codec=None, draws=None):
        keep = torch.ones(len(batch), dtype=torch.bool) if draws is None else ~self.dropped(draws)["own"]
        return self._of(self.number, len(batch)).where(keep, self.null(batch))

    def null(self, batch, codec=None):
        return self._of(0.0, len(batch))

    def dropped(self, draws):
        return {"own": dropped_samples(draws, "own", self.drop)}

    def _of(self, number, n):
        return Conditioning(**{name: torch.full((n, *shape), number) for name, shape in self.shapes.items()})


def batch(n: int = 400) -> Batch:
    return Batch(keys=[str(i) for i in range(n)])


def draws(number: int = 0, n: int = 400, rows: slice | None = None) -> Draws:
    rows = rows or slice(0, n)
    return Draws(seed=1, number=number, start=rows.start, count=rows.stop - rows.start, total=n)


def equal(a: Conditioning, b: Conditioning) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(Conditioning)]
    return all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


def three(together: float = 0.0) -> Composite:
    parts = {
        "text": Part(1.0, drop=0.3, tokens=(2, 4)),
        "class": Part(2.0, drop=0.2, tokens=(1, 4), vector=(3,)),
        "mask": Part(3.0, drop=0.0, spatial=(5, 2, 2), vector=(1,)),
    }
    return Composite(parts=parts, drop=together)


def test_parts_stand_one_after_the_other():
    cond = three()(batch(2))
    assert cond.tokens[:, :, 0].tolist() == [[1.0, 1.0, 2.0]] * 2
    assert cond.vector.tolist() == [[2.0, 2.0, 2.0, 3.0]] * 2
    assert cond.spatial.shape == (2, 5, 2, 2)
    assert (cond.mask, cond.label) == (None, None)


def test_a_missing_mask_is_true_everywhere():
    tokens = torch.zeros(2, 3, 4)
    mask = torch.tensor([[True, False, False]] * 2)
    joined = join({"a": Conditioning(tokens=tokens, mask=mask), "b": Conditioning(tokens=tokens[:, :2])})
    assert joined.mask.tolist() == [[True, False, False, True, True]] * 2


def test_guidance_compares_with_the_parts_that_are_always_there():
    composite = three()
    null = composite.null(batch(2))
    assert null.tokens.abs().sum() == 0
    assert null.vector.tolist() == [[0.0, 0.0, 0.0, 3.0]] * 2
    assert torch.all(null.spatial == 3.0)
    assert composite.parts == ("text", "class")
    assert composite.drop == 0.3
    alone = composite.alone(batch(2))
    assert alone.keys() == {"text", "class"}
    assert alone["text"].tokens[0, :, 0].tolist() == [1.0, 1.0, 0.0]
    assert alone["text"].vector[0].tolist() == [0.0, 0.0, 0.0, 3.0]
    assert alone["class"].tokens[0, :, 0].tolist() == [0.0, 0.0, 2.0]
    assert alone["class"].vector[0].tolist() == [2.0, 2.0, 2.0, 3.0]


def test_a_negative_prompt_takes_no_other_part_away_from_guidance():
    """Of the parts that training drops it holds the captions alone, and those that are always there."""
    composite = three()
    composite.members["text"].cut_captions = lambda captions: []
    negative = composite.captions_alone(batch(2))
    assert equal(negative, composite.alone(batch(2))["text"])
    assert torch.all(negative.spatial == 3.0)


def test_each_part_is_dropped_by_itself_and_as_it_says():
    composite = three()
    cond, gone = composite(batch(), None, draws()), composite.dropped(draws())
    assert torch.equal(cond.tokens[:, 0, 0] == 0, gone["text"])
    assert torch.equal(cond.tokens[:, 2, 0] == 0, gone["class"])
    assert torch.all(cond.spatial == 3.0)
    for name, p in {"text": 0.3, "class": 0.2}.items():
        assert abs(gone[name].float().mean() - p) < 3 * (p * (1 - p) / 400) ** 0.5
    both = (gone["text"] & gone["class"]).float().mean()
    assert abs(both - 0.06) < 3 * (0.06 * 0.94 / 400) ** 0.5
    halves = [composite(batch(200), None, draws(rows=rows)) for rows in (slice(0, 200), slice(200, 400))]
    assert equal(halves[0].cat(halves[1]), cond)


def test_equal_parts_have_draws_of_their_own():
    parts = {"one": Part(1.0, tokens=(1, 1)), "two": Part(1.0, tokens=(1, 1))}
    gone = Composite(parts=parts).dropped(draws())
    assert 0.3 < (gone["one"] == gone["two"]).float().mean() < 0.7


def test_all_that_can_be_dropped_go_together():
    composite = three(together=0.25)
    cond, gone = composite(batch(), None, draws()), composite.dropped(draws())
    assert torch.equal(cond.tokens[:, 0, 0] == 0, gone["text"])
    assert torch.equal(cond.vector[:, 0] == 0, gone["class"])
    assert torch.all(cond.vector[:, 3] == 3.0)
    both = 0.25 + 0.75 * 0.06
    assert abs((gone["text"] & gone["class"]).float().mean() - both) < 3 * (both * (1 - both) / 400) ** 0.5


def test_without_draws_nothing_is_dropped():
    assert equal(three(together=1.0)(batch(3)), three()(batch(3)))


def test_an_absent_condition_can_be_a_part():
    composite = Composite(parts={"none": Unconditional(), "text": Part(1.0, tokens=(2, 4))})
    assert composite(batch(2)).tokens.shape == (2, 2, 4)
    assert composite.parts == ("text",)


def test_counts_of_cut_captions_are_those_of_the_parts():
    one, two = Part(1.0, tokens=(1, 1)), Part(2.0, tokens=(1, 1))
    one.truncated, two.truncated = 2, 3
    one.cut_captions = lambda captions: [(captions[0], 90)]
    composite = Composite(parts={"one": one, "two": two, "mask": Part(3.0, spatial=(1, 2, 2))})
    assert composite.truncated == 5
    assert composite.cut_captions(["long", "short"]) == [("long", 90)]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"a": {"tokens": (1, 4)}, "b": {"tokens": (1, 8)}},
            "tokens of all parts must have one width.*4 from a, 8 from b",
        ),
        ({"a": {"spatial": (1, 4, 4)}, "b": {"spatial": (1, 2, 2)}}, "spatial of all parts must have one size"),
        ({"a": {"label": ()}, "b": {"label": ()}}, "a and b both give the backbone a class index"),
    ],
)
def test_parts_that_do_not_join_are_refused(parts, message):
    composite = Composite(parts={name: Part(1.0, **shapes) for name, shapes in parts.items()})
    with pytest.raises(InputError, match=message):
        composite(batch(2))


def test_a_composite_that_cannot_work_is_refused():
    with pytest.raises(InputError, match="at least one part"):
        Composite(parts={})
    with pytest.raises(InputError, match="neither called 'together' nor a composite itself"):
        Composite(parts={TOGETHER: Part(1.0)})
    with pytest.raises(InputError, match="neither called"):
        Composite(parts={"inner": three()})
    with pytest.raises(InputError, match="no part has a drop of its own"):
        Composite(parts={"mask": Part(1.0, drop=0.0)}, drop=0.1)
    with pytest.raises(InputError, match="expected a probability"):
        Composite(parts={"text": Part(1.0)}, drop=1.5)

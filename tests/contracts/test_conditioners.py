"""What every conditioner of ``latentdiff.conditioning`` must do: every class there with ``forward`` and ``null``.

A new conditioner is tested as soon as ``MAKERS`` says how to make a small one.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import pkgutil
from dataclasses import fields

import pytest
import torch
from torch import nn

from latentdiff import conditioning
from latentdiff.conditioning.open_clip_text import OpenClipText
from latentdiff.conditioning.text_transformer import TextTransformerConditioner
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.models.text_transformer import TextTransformer
from latentdiff.training.ema import Ema
from latentdiff.types import Batch, Conditioner, Conditioning

CAPTIONS = ["a red circle", "a blue box", "a green star on white", "a heart", "two rings", "a small cross"]


def _conditioners() -> list[type]:
    modules = [
        importlib.import_module(f"{conditioning.__name__}.{m.name}")
        for m in pkgutil.iter_modules(conditioning.__path__)
    ]
    return [
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and issubclass(value, nn.Module)
        and "null" in vars(value)
    ]


def _text_transformer(folder, drop):
    torch.manual_seed(0)
    transformer = TextTransformer(width=8, layers=1, heads=2, max_length=8)
    return TextTransformerConditioner(transformer=transformer, drop=drop)


def _open_clip(folder, drop):
    import open_clip

    name = "latentdiff-contract-tiny"
    if not (folder / f"{name}.json").exists():
        vision = {"image_size": 8, "layers": 1, "width": 8, "head_width": 8, "patch_size": 4}
        text = {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2}
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}))
        open_clip.add_model_config(folder)
        torch.manual_seed(0)
        torch.save(open_clip.create_model(name).state_dict(), folder / "weights.pt")
    return OpenClipText(model=name, weights=str(folder / "weights.pt"), drop=drop)


MAKERS = {TextTransformerConditioner: _text_transformer, OpenClipText: _open_clip}
CONDITIONERS = _conditioners()


@pytest.fixture(scope="module", params=CONDITIONERS, ids=lambda kind: kind.__name__)
def make(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditioner")
    return lambda drop=0.5: MAKERS[request.param](folder, drop)


@pytest.fixture(scope="module")
def conditioner(make):
    return make()


def batch(rows: slice = slice(0, 6), captions=CAPTIONS) -> Batch:
    keys = [str(i) for i in range(len(captions))]
    return Batch(keys=keys[rows], caption=captions[rows], start=rows.start, total=len(captions))


def draws(number: int, rows: slice = slice(0, 6), total: int = 6) -> Draws:
    return Draws(seed=4, number=number, start=rows.start, count=rows.stop - rows.start, total=total)


def parts(cond: Conditioning) -> dict[str, torch.Tensor]:
    return {f.name: value for f in fields(cond) if (value := getattr(cond, f.name)) is not None}


def close(a: Conditioning, b: Conditioning, exact: bool = False) -> bool:
    a, b = parts(a), parts(b)
    assert a.keys() == b.keys()
    pairs = [(a[name], b[name]) for name in a]
    return all(torch.equal(x, y) if exact else torch.allclose(x, y, atol=1e-6) for x, y in pairs)


def row(cond: Conditioning, i: int) -> Conditioning:
    return Conditioning(**{name: value[i : i + 1] for name, value in parts(cond).items()})


def test_each_has_a_maker():
    assert set(CONDITIONERS) == set(MAKERS)


@torch.no_grad()
def test_keeps_the_protocol(conditioner):
    assert isinstance(conditioner, Conditioner)
    cond, null = conditioner(batch(), None), conditioner.null(6)
    assert all(len(value) == 6 for value in parts(cond).values())
    assert {n: v.shape for n, v in parts(cond).items()} == {n: v.shape for n, v in parts(null).items()}
    assert {n: v.dtype for n, v in parts(cond).items()} == {n: v.dtype for n, v in parts(null).items()}
    assert cond.mask is None or cond.mask.dtype == torch.bool
    assert len(next(iter(parts(cond.cat(null)).values()))) == 12
    assert all(close(row(null, i), row(null, 0), exact=True) for i in range(6))


@torch.no_grad()
def test_rows_follow_the_order_of_the_batch_and_no_other_sample(conditioner):
    whole = conditioner(batch())
    backwards = conditioner(batch(captions=CAPTIONS[::-1]))
    assert all(close(row(whole, i), row(backwards, 5 - i)) for i in range(6))
    assert all(close(row(whole, i), conditioner(batch(slice(i, i + 1)))) for i in range(6))
    assert not any(close(row(whole, i), row(whole, j)) for i in range(6) for j in range(i))


@torch.no_grad()
def test_dropped_samples_have_exactly_the_null_condition(make, conditioner):
    always = make(drop=1.0)
    assert close(always(batch(), None, draws(0)), always.null(6))
    whole, null = conditioner(batch()), conditioner.null(6)
    outcomes = set()
    for number in range(4):
        cond = conditioner(batch(), None, draws(number))
        for i in range(6):
            kept, dropped = close(row(cond, i), row(whole, i)), close(row(cond, i), row(null, i))
            assert kept != dropped
            outcomes.add(dropped)
    assert outcomes == {True, False}


@torch.no_grad()
def test_a_dropped_sample_is_bitwise_the_null_condition_of_an_equal_batch(make):
    """Both come from the same tokens; only the batch's size may change the rounding."""
    always = make(drop=1.0)
    assert close(always(batch(slice(0, 1)), None, draws(0, slice(0, 1))), always.null(1), exact=True)


@torch.no_grad()
def test_realised_drop_rate(make):
    p, count = 0.3, 0
    conditioner = make(drop=p)
    captions = ["a"] * 100
    null = next(iter(parts(conditioner.null(1)).values()))
    for number in range(10):
        cond = conditioner(batch(slice(0, 100), captions), None, draws(number, slice(0, 100), 100))
        value = next(iter(parts(cond).values()))
        count += int(((value - null).abs().flatten(1).amax(1) < 1e-6).sum())
    assert abs(count / 1000 - p) < 3 * (p * (1 - p) / 1000) ** 0.5


@torch.no_grad()
def test_dropping_does_not_depend_on_the_split_over_ranks(conditioner):
    whole = conditioner(batch(), None, draws(2))
    halves = [conditioner(batch(rows), None, draws(2, rows)) for rows in (slice(0, 3), slice(3, 6))]
    assert close(halves[0].cat(halves[1]), whole)


@torch.no_grad()
def test_nothing_is_dropped_without_draws(make):
    assert close(make(drop=1.0)(batch()), make(drop=0.0)(batch(), None, draws(0)))


def test_the_average_computes_the_same_and_shares_what_is_frozen(make):
    conditioner = make()
    ema = Ema(nn.ModuleDict({"conditioner": conditioner}), decay=0.9)
    with torch.no_grad():
        assert close(ema.model["conditioner"](batch()), conditioner(batch()), exact=True)
    trained = {p.data_ptr() for p in conditioner.parameters() if p.requires_grad}
    frozen = {p.data_ptr() for p in conditioner.parameters() if not p.requires_grad}
    averaged = {p.data_ptr() for p in ema.parameters()}
    assert not trained & averaged
    assert frozen <= averaged


def test_weights_round_trip_strictly(make):
    """Frozen parts are in no checkpoint, and loading one stays strict."""
    parent = nn.ModuleDict({"conditioner": make()})
    state = copy.deepcopy(parent.state_dict())
    assert set(state) == {name for name, p in parent.named_parameters() if p.requires_grad}
    other = nn.ModuleDict({"conditioner": make()})
    with torch.no_grad():
        for p in other.parameters():
            if p.requires_grad:
                p.zero_()
    other.load_state_dict(state, strict=True)
    with torch.no_grad():
        assert close(other["conditioner"](batch()), parent["conditioner"](batch()), exact=True)


def test_what_the_batch_lacks_is_an_input_error(conditioner):
    with pytest.raises(InputError, match="the batch has none"):
        conditioner(Batch(keys=["a"]))

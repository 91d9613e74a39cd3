"""What every conditioner of ``latentdiff.conditioning`` must do: every class there with ``forward`` and ``null``.

A new conditioner is tested as soon as ``MAKERS`` says how to make a small one.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import json
import pkgutil
from dataclasses import fields

import pytest
import torch
from torch import nn

from latentdiff import conditioning
from latentdiff.conditioning.cached_text import CachedText
from latentdiff.conditioning.class_label import ClassIndex, ClassTokens, ClassVector
from latentdiff.conditioning.compose import Composite
from latentdiff.conditioning.hf_text import HfText
from latentdiff.conditioning.low_resolution import LowResolution
from latentdiff.conditioning.masked_image import MaskedImage
from latentdiff.conditioning.open_clip_text import OpenClipText
from latentdiff.conditioning.semantic_map import SemanticMap
from latentdiff.conditioning.size_vector import SizeVector
from latentdiff.conditioning.text_transformer import TextTransformerConditioner
from latentdiff.conditioning.unconditional import Unconditional
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.models.text_transformer import TextTransformer
from latentdiff.training.ema import Ema
from latentdiff.types import Batch, Conditioner, Conditioning

SIDE, FACTOR = 8, 2
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
    return OpenClipText(model=name, weights=str(folder / "weights.pt"), drop=drop, pooled=True)


def _hf_text(folder, drop):
    import transformers

    if not (folder / "vocab.txt").exists():
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({w for c in CAPTIONS for w in c.split()})]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        about = {"tokenizer_class": "BertTokenizer", "model_max_length": 8}
        (folder / "tokenizer_config.json").write_text(json.dumps(about))
        sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        torch.manual_seed(0)
        config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=8, **sizes)
        transformers.BertModel(config).save_pretrained(folder)
    return HfText(model=str(folder), max_length=8, drop=drop)


def _no_text():
    return {"tokens": torch.zeros(4, 8), "mask": torch.tensor([True, False, False, False]), "vector": torch.zeros(5)}


def _composite(folder, drop):
    parts = {"text": _text_transformer(folder, drop), "class": ClassVector(classes=6, width=4, drop=drop)}
    return Composite(parts=parts)


MAKERS = {
    TextTransformerConditioner: _text_transformer,
    OpenClipText: _open_clip,
    HfText: _hf_text,
    CachedText: lambda folder, drop: CachedText(empty=_no_text(), drop=drop),
    ClassTokens: lambda folder, drop: _seeded(ClassTokens, classes=6, width=4, drop=drop),
    ClassVector: lambda folder, drop: _seeded(ClassVector, classes=6, width=4, drop=drop),
    ClassIndex: lambda folder, drop: ClassIndex(classes=6, drop=drop),
    SizeVector: lambda folder, drop: SizeVector(frequencies=8, drop=drop),
    SemanticMap: lambda folder, drop: _seeded(SemanticMap, classes=6, channels=3, drop=drop),
    MaskedImage: lambda folder, drop: MaskedImage(drop=drop),
    LowResolution: lambda folder, drop: LowResolution(factor=2, drop=drop),
    Composite: _composite,
}
"""Unconditional gives nothing: what is asked of conditions does not apply to it."""
CONDITIONERS = [kind for kind in _conditioners() if kind is not Unconditional]


def _seeded(kind, **options):
    torch.manual_seed(0)
    return kind(**options)


class PixelCodec:
    """Latents are the means of 2 x 2 pixels, exactly."""

    channels, factor = 3, FACTOR

    def moments(self, image):
        mean = torch.nn.functional.avg_pool2d(image, FACTOR)
        return mean, torch.zeros_like(mean)

    def draw(self, moments, noise):
        return moments[0] + moments[1] * noise


CODEC = PixelCodec()


@pytest.fixture(scope="module", params=CONDITIONERS, ids=lambda kind: kind.__name__)
def make(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditioner")
    return lambda drop=0.5: MAKERS[request.param](folder, drop)


@pytest.fixture(scope="module")
def conditioner(make):
    return make()


@functools.cache
def everything(count: int) -> dict[str, torch.Tensor]:
    """Every tensor that a batch can hold; no two samples are alike."""
    generator = torch.Generator().manual_seed(3)

    def uint8(*shape, below=256):
        return torch.randint(0, below, (count, *shape), generator=generator, dtype=torch.uint8)

    return {
        "image": uint8(3, SIDE, SIDE),
        "label": torch.arange(count) % 6,
        "segmentation": uint8(SIDE, SIDE, below=6),
        "mask": uint8(1, SIDE, SIDE, below=2),
        "low_res": uint8(3, SIDE // 2, SIDE // 2),
        "size": torch.arange(6 * count).view(count, 6),
        "numbers": torch.rand(count, 1, generator=generator),
        "text_tokens": torch.randn(count, 4, 8, generator=generator),
        "text_mask": torch.ones(count, 4, dtype=torch.bool),
        "text_vector": torch.randn(count, 5, generator=generator),
    }


def batch(rows: slice = slice(0, 6), captions=CAPTIONS, order: list[int] | None = None) -> Batch:
    """Samples ``rows`` of as many as there are captions, or these in another ``order``."""
    order = list(range(len(captions))) if order is None else order
    tensors = {name: value[order][rows] for name, value in everything(len(captions)).items()}
    keys, captions = [str(i) for i in order], [captions[i] for i in order]
    return Batch(keys=keys[rows], caption=captions[rows], start=rows.start, total=len(captions), **tensors)


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


@torch.no_grad()
def test_one_part_alone(conditioner):
    """Every part is told apart; a conditioner of one part gives all it has."""
    alone, null = conditioner.alone(batch(), CODEC), conditioner.null(batch(), CODEC)
    assert tuple(alone) == tuple(conditioner.parts)
    assert not any(close(cond, null) for cond in alone.values())
    if len(alone) == 1:
        assert close(*alone.values(), conditioner(batch(), CODEC))
    assert conditioner.drop == 0.5


def test_no_condition_is_a_conditioner_too():
    nothing = Unconditional()
    assert isinstance(nothing, Conditioner)
    assert parts(nothing(batch())) == parts(nothing.null(batch())) == nothing.alone(batch()) == {}
    assert nothing.dropped(draws(0)) == {}
    assert (nothing.drop, nothing.parts) == (0.0, ())


def test_each_has_a_maker():
    assert set(CONDITIONERS) == set(MAKERS)


@torch.no_grad()
def test_keeps_the_protocol(conditioner):
    assert isinstance(conditioner, Conditioner)
    cond, null = conditioner(batch(), CODEC), conditioner.null(batch(), CODEC)
    assert all(len(value) == 6 for value in parts(cond).values())
    assert {n: v.shape for n, v in parts(cond).items()} == {n: v.shape for n, v in parts(null).items()}
    assert {n: v.dtype for n, v in parts(cond).items()} == {n: v.dtype for n, v in parts(null).items()}
    assert cond.mask is None or cond.mask.dtype == torch.bool
    assert len(next(iter(parts(cond.cat(null)).values()))) == 12
    assert all(close(row(null, i), row(null, 0), exact=True) for i in range(6))


@torch.no_grad()
def test_rows_follow_the_order_of_the_batch_and_no_other_sample(conditioner):
    whole = conditioner(batch(), CODEC)
    backwards = conditioner(batch(order=[5, 4, 3, 2, 1, 0]), CODEC)
    assert all(close(row(whole, i), row(backwards, 5 - i)) for i in range(6))
    assert all(close(row(whole, i), conditioner(batch(slice(i, i + 1)), CODEC)) for i in range(6))
    assert not any(close(row(whole, i), row(whole, j)) for i in range(6) for j in range(i))


@torch.no_grad()
def test_dropped_samples_have_exactly_the_null_condition(make, conditioner):
    """And ``dropped`` says which they are. Of a composite each part is: tests/conditioning/test_compose.py."""
    if isinstance(conditioner, Composite):
        pytest.skip("its parts are dropped one by one")
    always = make(drop=1.0)
    assert close(always(batch(), CODEC, draws(0)), always.null(batch(), CODEC))
    whole, null = conditioner(batch(), CODEC), conditioner.null(batch(), CODEC)
    outcomes = set()
    for number in range(4):
        cond = conditioner(batch(), CODEC, draws(number))
        (gone,) = conditioner.dropped(draws(number)).values()
        for i in range(6):
            kept, dropped = close(row(cond, i), row(whole, i)), close(row(cond, i), row(null, i))
            assert kept != dropped
            assert dropped == gone[i]
            outcomes.add(dropped)
    assert outcomes == {True, False}


@torch.no_grad()
def test_a_dropped_sample_is_bitwise_the_null_condition_of_an_equal_batch(make):
    """Both come from the same tokens; only the batch's size may change the rounding."""
    always = make(drop=1.0)
    one = batch(slice(0, 1))
    assert close(always(one, CODEC, draws(0, slice(0, 1))), always.null(one, CODEC), exact=True)


@torch.no_grad()
def test_realised_drop_rate(make):
    p, counts = 0.3, {}
    conditioner = make(drop=p)
    for number in range(10):
        for name, gone in conditioner.dropped(draws(number, slice(0, 100), 100)).items():
            counts[name] = counts.get(name, 0) + int(gone.sum())
    assert counts.keys() == set(conditioner.parts)
    assert all(abs(count / 1000 - p) < 3 * (p * (1 - p) / 1000) ** 0.5 for count in counts.values())
    assert len(set(counts.values())) == len(counts)


@torch.no_grad()
def test_dropping_does_not_depend_on_the_split_over_ranks(conditioner):
    whole = conditioner(batch(), CODEC, draws(2))
    halves = [conditioner(batch(rows), CODEC, draws(2, rows)) for rows in (slice(0, 3), slice(3, 6))]
    assert close(halves[0].cat(halves[1]), whole)


@torch.no_grad()
def test_nothing_is_dropped_without_draws(make):
    assert close(make(drop=1.0)(batch(), CODEC), make(drop=0.0)(batch(), CODEC, draws(0)))


def test_the_average_computes_the_same_and_shares_what_is_frozen(make):
    conditioner = make()
    ema = Ema(nn.ModuleDict({"conditioner": conditioner}), decay=0.9)
    with torch.no_grad():
        assert close(ema.model["conditioner"](batch(), CODEC), conditioner(batch(), CODEC), exact=True)
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
        assert close(other["conditioner"](batch(), CODEC), parent["conditioner"](batch(), CODEC), exact=True)


def test_what_the_batch_lacks_is_an_input_error(conditioner):
    with pytest.raises(InputError, match="the batch has none"):
        conditioner(Batch(keys=["a"]), CODEC)

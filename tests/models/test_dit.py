import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from latentdiff.config.errors import InputError
from latentdiff.models.backbones.dit import DiT
from latentdiff.training.compilation import compile_blocks
from latentdiff.training.ema import Ema
from latentdiff.types import Conditioning

MODERN = {"qk_norm": True, "rope": True, "swiglu": True, "rms_norm": True}
VARIANTS = [
    {},
    {"patch": 4},
    {"context_dim": 6},
    {"vector_dim": 5},
    {"num_classes": 3, "vector_dim": 5, "context_dim": 6},
    MODERN | {"context_dim": 6, "num_classes": 3},
]


def small(**changes):
    torch.manual_seed(0)
    return DiT(**({"in_channels": 4, "out_channels": 4, "width": 16, "depth": 2, "heads": 2} | changes))


def fitting(model, draw):
    return Conditioning(
        tokens=draw(2, 5, model.context_dim) if model.context_dim else None,
        vector=draw(2, model.vector_dim) if model.vector_dim else None,
        label=torch.tensor([1, 0]) if model.num_classes else None,
    )


@pytest.mark.parametrize("changes", VARIANTS)
def test_shapes_zero_start_identity_blocks_and_gradients(draw, randomise, changes):
    model = small(**changes)
    cond, x, t = fitting(model, draw), draw(2, 4, 8, 12), torch.tensor([3.0, 700.0])
    streams = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    model.final_layer.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    assert not model(x, t, cond).any()
    assert torch.equal(*streams)
    y = randomise(model)(x, t, cond)
    assert y.shape == x.shape
    assert not torch.equal(*streams[2:])
    y.square().mean().backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


@pytest.mark.parametrize("changes", [*VARIANTS, {"dropout": 0.2}])
def test_computing_the_blocks_again_changes_neither_values_nor_gradients(draw, randomise, changes):
    x, t, found = draw(2, 4, 8, 8), torch.tensor([3.0, 700.0]), {}
    for checkpoint in (False, True):
        model = randomise(small(**changes, checkpoint=checkpoint))
        runs = []
        model.blocks[1].mlp.register_forward_hook(lambda *_, seen=runs: seen.append(1))
        torch.manual_seed(3)  # of the dropout
        y = model(x, t, fitting(model, draw))
        y.square().mean().backward()
        found[checkpoint] = (y.detach(), {name: p.grad for name, p in model.named_parameters()})
        assert len(runs) == 1 + checkpoint
        with torch.no_grad():
            model(x, t, fitting(model, draw))
        assert len(runs) == 2 + checkpoint
    torch.testing.assert_close(found[True], found[False], atol=0, rtol=0)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_a_patch_goes_where_it_came_from(draw, randomise, patch):
    """Without a block, a place of the latent reaches its own patch alone, and all of it."""
    model = randomise(small(depth=1, patch=patch))
    model.blocks = torch.nn.ModuleList()
    x, t = draw(1, 4, 8, 12), torch.tensor([3.0])
    other = x.clone()
    other[0, 2, 4, 9] += 1
    changed = (model(x, t, Conditioning()) != model(other, t, Conditioning()))[0]
    rows, columns = slice(4, 4 + patch), slice(9 - 9 % patch, 9 - 9 % patch + patch)
    assert changed[:, rows, columns].all()
    assert changed.sum() == 4 * patch**2


@pytest.mark.parametrize("rope", [False, True])
def test_rows_and_columns_of_the_patches_are_told_apart(draw, randomise, rope):
    """Tokens without places could be put in any order: the answers would only move along."""
    model = randomise(small(rope=rope), std=0.2).double()
    x, t = draw(1, 4, 6, 10).double(), torch.tensor([3.0])
    orders = {
        "rows": lambda patches: patches.flip(2),
        "columns": lambda patches: patches.flip(3),
        "rows for columns": lambda patches: patches.transpose(2, 3),
    }
    with torch.no_grad():
        y = model(x, t, Conditioning())
        for name, order in orders.items():
            moved, expected = (F.pixel_shuffle(order(F.pixel_unshuffle(z, 2)), 2) for z in (x, y))
            assert (model(moved, t, Conditioning()) - expected).abs().max() > 1e-2, name


def test_a_class_is_a_row_of_the_table_and_a_vector_goes_through_two_layers(draw, randomise):
    model, plain = randomise(small(num_classes=3, vector_dim=5)), randomise(small())
    own = {k: v for k, v in model.state_dict().items() if not k.startswith(("class_embedding", "vector_embed"))}
    plain.load_state_dict(own)
    x, t, cond = draw(2, 4, 8, 8), torch.tensor([3.0, 700.0]), fitting(model, draw)
    first, _, second = model.vector_embed
    vector = F.silu(cond.vector @ first.weight.T + first.bias) @ second.weight.T + second.bias
    more = model.class_embedding.weight[cond.label] + vector
    plain.time_embed.register_forward_hook(lambda _, __, emb: emb + more)
    with torch.no_grad():
        expected = plain(x, t, Conditioning())
        torch.testing.assert_close(model(x, t, cond), expected, atol=1e-5, rtol=1e-5)
        other = model(x, t, replace(cond, label=torch.tensor([2, 2])))
    assert (other - expected).abs().amax((1, 2, 3)).min() > 1e-2
    assert model.class_embedding.weight.shape == (3, 16)


@pytest.mark.parametrize("changes", [{}, MODERN])
def test_padding_of_the_tokens_does_not_matter(draw, randomise, changes):
    model = randomise(small(context_dim=6, **changes))
    x, t, tokens = draw(2, 4, 8, 8), torch.tensor([3.0, 700.0]), draw(2, 5, 6, seed=1)
    mask = torch.tensor([[True, True, False, False, False], [True] * 5])
    cond = Conditioning(tokens=tokens, mask=mask)
    other = torch.where(mask[..., None], tokens, draw(2, 5, 6, seed=2))
    with torch.no_grad():
        y = model(x, t, cond)
        torch.testing.assert_close(model(x, t, replace(cond, tokens=other)), y)
        short = Conditioning(tokens=tokens[:1, :2])
        torch.testing.assert_close(model(x[:1], t[:1], short), y[:1], atol=1e-5, rtol=1e-5)
        assert (model(x, t, replace(cond, mask=None))[0] - y[0]).abs().max() > 1e-4


def test_spatial_condition_is_concatenated(draw, randomise):
    wide = randomise(small(in_channels=6))
    x, spatial, t = draw(2, 4, 8, 8), draw(2, 2, 8, 8, seed=1), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        expected = wide(torch.cat([x, spatial], 1), t, Conditioning())
        y = wide(x, t, Conditioning(spatial=spatial))
    assert y.shape == x.shape
    torch.testing.assert_close(y, expected)


def test_what_does_not_fit_is_refused(draw):
    model, t, fits = small(context_dim=6), torch.tensor([3.0]), Conditioning(tokens=draw(1, 5, 6))
    faults = [
        (draw(1, 4, 7, 8), fits, r"multiples of 2, got \(7, 8\)"),
        (draw(1, 3, 8, 8), fits, "3 channels, in_channels is 4"),
        (draw(1, 4, 8, 8), Conditioning(tokens=draw(1, 5, 7)), "tokens have width 7, the DiT was built for 6"),
        (draw(1, 4, 8, 8), Conditioning(), "tokens have width None"),
        (draw(1, 4, 8, 8), replace(fits, label=torch.tensor([0])), "has a class label, .* with num_classes=None"),
        (draw(1, 4, 8, 8), replace(fits, vector=draw(1, 3)), "vector have width 3, the DiT was built for None"),
        (draw(1, 2, 8, 8), replace(fits, spatial=draw(1, 2, 4, 4)), r"spatial condition is \(4, 4\)"),
    ]
    for x, cond, message in faults:
        with pytest.raises(InputError, match=message):
            model(x, t, cond)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "16 cannot be split evenly into 3 heads"),
        ({"width": 18}, "width of a multiple of 4 features, .* got 18; change width$"),
        ({"width": 24, "heads": 4, "rope": True}, "a head of a multiple of 4 .* got 6; change width or heads"),
    ],
)
def test_contradictory_widths_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        small(**changes)


@pytest.mark.parametrize("changes", VARIANTS)
def test_bfloat16_autocast_stays_near_float32(draw, randomise, changes):
    model = randomise(small(**changes))
    x, t, cond = draw(2, 4, 8, 8), torch.tensor([3.0, 700.0]), fitting(model, draw)
    with torch.no_grad():
        exact = model(x, t, cond)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x, t, cond)
    assert rough.dtype is torch.bfloat16
    assert (exact - rough).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("changes", VARIANTS)
def test_a_model_in_bfloat16_answers_in_it(draw, randomise, changes):
    model = randomise(small(**changes))
    x, t, cond = draw(2, 4, 8, 8), torch.tensor([3.0, 700.0]), fitting(model, draw)
    with torch.no_grad():
        exact = model(x, t, cond)
        parts = {k: v.bfloat16() for k in ("tokens", "vector") if (v := getattr(cond, k)) is not None}
        rough = copy.deepcopy(model).bfloat16()(x.bfloat16(), t, replace(cond, **parts))
    assert rough.dtype is torch.bfloat16
    assert (exact - rough).norm() < 0.06 * exact.norm()


@pytest.mark.parametrize("changes", [{"context_dim": 6}, MODERN])
def test_all_blocks_share_one_compiled_graph_with_the_same_numbers(draw, randomise, changes):
    model, graphs = randomise(small(depth=3, **changes)), []
    compiled = copy.deepcopy(model)
    x, t, cond = draw(2, 4, 8, 8), torch.tensor([3.0, 700.0]), fitting(model, draw)
    torch._dynamo.reset()
    compile_blocks(compiled, "blocks", backend=lambda graph, _: graphs.append(graph) or graph.forward)
    expected, y = model(x, t, cond), compiled(x, t, cond)
    torch._dynamo.reset()
    torch.testing.assert_close(y, expected, atol=0, rtol=0)
    assert list(compiled.state_dict()) == list(model.state_dict())
    assert len(graphs) == 1


def test_an_average_of_it_follows(draw, randomise):
    model = small(num_classes=3)
    ema, x, t = Ema(model, decay=0.5), draw(2, 4, 8, 8), torch.tensor([3.0, 700.0])
    cond = fitting(model, draw)
    randomise(model)
    assert not ema.model(x, t, cond).any()
    for _ in range(200):  # its decay begins at 0.1 and rises to 0.5
        ema.update(model)
    torch.testing.assert_close(ema.model(x, t, cond), model(x, t, cond), atol=1e-5, rtol=1e-5)

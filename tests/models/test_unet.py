import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from latentdiff.config.errors import InputError
from latentdiff.models.backbones.unet import UNet
from latentdiff.nn.embeddings import timestep_embedding
from latentdiff.nn.precision import cast_matmul_weights
from latentdiff.types import Conditioning


def small(**changes):
    torch.manual_seed(0)
    options = {
        "in_channels": 4,
        "out_channels": 4,
        "channels": 16,
        "channel_multipliers": (1, 2),
        "num_res_blocks": 1,
        "attention_factors": (2,),
        "context_dim": 6,
        "heads": 2,
        "norm_groups": 4,
    }
    return UNet(**(options | changes))


SD1 = {
    "in_channels": 4,
    "out_channels": 4,
    "channels": 320,
    "channel_multipliers": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "attention_factors": (4, 2, 1),
    "context_dim": 768,
    "heads": 8,
    "norm_groups": 32,
}
SDXL = SD1 | {
    "channel_multipliers": (1, 2, 4),
    "attention_factors": (4, 2),
    "context_dim": 2048,
    "heads": None,
    "head_width": 64,
    "use_linear": True,
    "transformer_depth": (1, 2, 10),
    "vector_dim": 2816,
}


@pytest.mark.parametrize(("options", "count"), [(SD1, 859_520_964), (SDXL, 2_567_463_684)])
def test_published_parameter_counts(options, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(**options).parameters()) == count


VARIANTS = [
    {},
    {"patch": 2},
    {"context_dim": None},
    {"vector_dim": 5},
    {"num_classes": 2},
    {"use_linear": True},
    {"use_scale_shift_norm": True},
    {"resblock_updown": True, "context_dim": None, "use_scale_shift_norm": True},
]


def fitting(model, draw):
    return Conditioning(
        tokens=draw(2, 5, 6) if model.context_dim else None,
        vector=draw(2, 5) if model.vector_dim else None,
        label=torch.tensor([1, 0]) if model.num_classes else None,
    )


@pytest.mark.parametrize("changes", VARIANTS)
def test_shapes_zero_start_and_gradients(draw, randomise, changes):
    model = small(**changes)
    cond = fitting(model, draw)
    x, t = draw(2, 4, 8, 12), torch.tensor([3.0, 700.0])
    assert model(x, t, cond).abs().max() == 0
    y = randomise(model)(x, t, cond)
    assert y.shape == x.shape
    y.square().mean().backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


@pytest.mark.parametrize("changes", VARIANTS)
def test_computing_the_stages_again_changes_neither_values_nor_gradients(draw, randomise, changes):
    x, t, found = draw(2, 4, 8, 8), torch.tensor([3.0, 700.0]), {}
    for checkpoint in (False, True):
        model = randomise(small(**changes, dropout=0.2, checkpoint=checkpoint))
        runs = []
        model.middle_block[0].register_forward_hook(lambda *_, seen=runs: seen.append(1))
        torch.manual_seed(3)  # of the dropout
        y = model(x, t, fitting(model, draw))
        y.square().mean().backward()
        found[checkpoint] = (y.detach(), {name: p.grad for name, p in model.named_parameters()})
        assert len(runs) == 1 + checkpoint
        with torch.no_grad():
            model(x, t, fitting(model, draw))
        assert len(runs) == 2 + checkpoint
    torch.testing.assert_close(found[True], found[False], atol=0, rtol=0)


def test_a_class_is_a_row_of_the_table_added_to_the_time_s_embedding(draw, randomise):
    model, plain = randomise(small(num_classes=3)), randomise(small())
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name != "label_emb.weight"})
    assert model.label_emb.weight.shape == (3, 64)
    x, t, cond = draw(2, 4, 8, 8), torch.tensor([3.0, 700.0]), Conditioning(tokens=draw(2, 5, 6))
    label = torch.tensor([2, 0])
    plain.time_embed.register_forward_hook(lambda _, __, emb: emb + model.label_emb.weight[label])
    with torch.no_grad():
        torch.testing.assert_close(model(x, t, replace(cond, label=label)), plain(x, t, cond))


def test_masked_tokens_do_not_matter(draw, randomise):
    model = randomise(small())
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


def test_null_conditioning_concerns_only_its_samples(draw, randomise):
    model = randomise(small())
    x, t = draw(2, 4, 8, 8), torch.tensor([3.0, 700.0])
    cond, null = Conditioning(tokens=draw(2, 5, 6)), Conditioning(tokens=torch.zeros(2, 5, 6))
    with torch.no_grad():
        mixed = model(x, t, cond.where(torch.tensor([True, False]), null))
        torch.testing.assert_close(mixed[0], model(x, t, cond)[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mixed[1], model(x, t, null)[1], atol=1e-5, rtol=1e-5)
        assert (mixed[1] - model(x, t, cond)[1]).abs().max() > 1e-4


def test_spatial_condition_is_concatenated(draw, randomise):
    wide, cond = randomise(small(in_channels=6)), Conditioning(tokens=draw(2, 5, 6))
    x, spatial, t = draw(2, 4, 8, 8), draw(2, 2, 8, 8, seed=1), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        torch.testing.assert_close(
            wide(x, t, replace(cond, spatial=spatial)), wide(torch.cat([x, spatial], 1), t, cond)
        )


def test_what_does_not_fit_is_refused(draw):
    model, t, fitting = small(), torch.tensor([3.0]), Conditioning(tokens=draw(1, 5, 6))
    faults = [
        (draw(1, 4, 7, 8), fitting, r"multiples of 2, got \(7, 8\)"),
        (draw(1, 3, 8, 8), fitting, "3 channels, in_channels is 4"),
        (draw(1, 4, 8, 8), Conditioning(tokens=draw(1, 5, 7)), "tokens have width 7, the UNet was built for 6"),
        (draw(1, 4, 8, 8), Conditioning(), "tokens have width None"),
        (draw(1, 4, 8, 8), replace(fitting, label=torch.tensor([0])), "has a class label, .* with num_classes=None"),
        (draw(1, 4, 8, 8), replace(fitting, vector=draw(1, 3)), "vector have width 3, the UNet was built for None"),
        (draw(1, 2, 8, 8), replace(fitting, spatial=draw(1, 2, 4, 4)), r"spatial condition is \(4, 4\)"),
    ]
    for x, cond, message in faults:
        with pytest.raises(InputError, match=message):
            model(x, t, cond)
    with pytest.raises(InputError, match="has no class label, the UNet was built with num_classes=3"):
        small(num_classes=3)(draw(1, 4, 8, 8), t, fitting)


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": None},
        {"head_width": 8},
        {"attention_factors": (3,)},
        {"transformer_depth": (1,)},
        {"heads": 3},
        {"heads": None, "head_width": 12},
        {"heads": None, "head_width": 64},
        {"num_classes": 3, "vector_dim": 5},
    ],
)
def test_contradictory_options_are_refused(changes):
    with pytest.raises(InputError, match=r"exactly one of|name no level|entries for 2 levels|split evenly|both given"):
        small(**changes)


def test_bfloat16_autocast_stays_near_float32(draw, randomise):
    model = randomise(small())
    x, t = draw(2, 4, 8, 8), torch.tensor([3.0, 700.0])
    cond = Conditioning(tokens=draw(2, 5, 6), mask=torch.tensor([[True] * 3 + [False] * 2, [True] * 5]))
    with torch.no_grad():
        exact = model(x, t, cond)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x, t, cond)
    assert (exact - rough).norm() < 0.03 * exact.norm()


def _diffusers_peer(model, folder, **config):
    diffusers = pytest.importorskip("diffusers")
    save_file({f"model.diffusion_model.{k}": v for k, v in model.state_dict().items()}, folder / "m.safetensors")
    peer = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        cross_attention_dim=24,
        **config,
    )
    (folder / "unet").mkdir()
    (folder / "unet/config.json").write_text(json.dumps(dict(peer.config) | {"_class_name": "UNet2DConditionModel"}))
    return diffusers.UNet2DConditionModel.from_single_file(
        str(folder / "m.safetensors"), config=str(folder), subfolder="unet", local_files_only=True
    ).eval()


PUBLISHED = {"channels": 32, "num_res_blocks": 2, "context_dim": 24, "norm_groups": 32}


def test_parity_with_diffusers_stable_diffusion_1(draw, randomise, tmp_path):
    model = randomise(small(**PUBLISHED, heads=4), std=0.05).eval()
    peer = _diffusers_peer(model, tmp_path, attention_head_dim=4)
    x, t, tokens = draw(2, 4, 8, 8), torch.tensor([3, 700]), draw(2, 5, 24)
    mask = torch.tensor([[True, True, False, False, False], [True] * 5])
    with torch.no_grad():
        ours = model(x, t, Conditioning(tokens=tokens))
        torch.testing.assert_close(ours, peer(x, t, tokens).sample, atol=1e-5, rtol=1e-5)
        ours = model(x, t, Conditioning(tokens=tokens, mask=mask))
        theirs = peer(x, t, tokens, encoder_attention_mask=mask).sample
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_parity_with_diffusers_sdxl(draw, randomise, tmp_path):
    sdxl = {"heads": None, "head_width": 16, "use_linear": True, "transformer_depth": (1, 2), "vector_dim": 8 + 6 * 4}
    model = randomise(small(**PUBLISHED, **sdxl), std=0.05).eval()
    peer = _diffusers_peer(
        model,
        tmp_path,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=[1, 2],
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32,
    )
    x, t, tokens, pooled = draw(2, 4, 8, 8), torch.tensor([3, 700]), draw(2, 5, 24), draw(2, 8, seed=1)
    sizes = torch.arange(12.0).view(2, 6) * 100
    vector = torch.cat([pooled, timestep_embedding(sizes.flatten(), 4).view(2, -1)], dim=1)
    with torch.no_grad():
        ours = model(x, t, Conditioning(tokens=tokens, vector=vector))
        theirs = peer(x, t, tokens, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}).sample
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("context_dim", [6, None])
def test_weights_cast_once_give_what_autocast_gives(draw, randomise, context_dim):
    model = randomise(small(context_dim=context_dim)).eval()
    cond = Conditioning(tokens=None if context_dim is None else draw(2, 5, context_dim))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(draw(2, 4, 8, 8), torch.tensor([3.0, 500.0]), cond)
        cast_matmul_weights(model, torch.bfloat16)
        got = model(draw(2, 4, 8, 8), torch.tensor([3.0, 500.0]), cond)
    assert model.out[0].weight.dtype == torch.float32
    assert model.out[2].weight.dtype == torch.bfloat16
    assert torch.equal(got, expected)

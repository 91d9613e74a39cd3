"""The published sizes of the DiT, and diffusers' as its oracle."""

import pytest
import torch

from latentdiff.models.backbones.dit import FREQUENCIES, DiT
from latentdiff.nn.embeddings import position_embedding, timestep_embedding
from latentdiff.types import Conditioning

MODERN = {"qk_norm": True, "rope": True, "swiglu": True, "rms_norm": True}
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
"""Width, depth and heads (arXiv:2212.09748, table 1)."""


def built(**changes):
    torch.manual_seed(0)
    return DiT(**({"in_channels": 4, "out_channels": 4, "width": 16, "depth": 2, "heads": 2} | changes))


def count(module):
    return sum(p.numel() for p in module.parameters())


def of_linear(inputs, outputs):
    return (inputs + 1) * outputs


@pytest.mark.parametrize(
    ("size", "expected"), [("S", 32_858_896), ("B", 130_303_504), ("L", 457_824_272), ("XL", 674_816_272)]
)
def test_parameter_counts_of_the_paper_s_sizes(size, expected):
    """33 M, 130 M, 458 M and 675 M in the paper. Its code counts two things more: the fixed table of 16 x 16 places and
    the rows of the final layer that learn the variance; with both, XL/2 has the published 675,129,632."""
    width, depth, heads = SIZES[size]
    with torch.device("meta"):
        model = built(width=width, depth=depth, heads=heads, num_classes=1001)
    attention, mlp = of_linear(width, 3 * width) + of_linear(width, width), 2 * 4 * width**2 + 5 * width
    blocks = depth * (attention + mlp + of_linear(width, 6 * width))
    embedder = of_linear(256, width) + of_linear(width, width) + 1001 * width
    first_and_last = of_linear(4 * 4, width) + of_linear(width, 2 * width) + of_linear(width, 4 * 4)
    assert count(model) == blocks + embedder + first_and_last == expected
    if size == "XL":
        assert expected + 16 * 16 * width == 675_111_184
        assert expected + 16 * 16 * width + of_linear(width, 4 * 4) == 675_129_632


def test_parameter_counts_of_the_options():
    """Of XL/2: what LightningDiT's changes and cross-attention to tokens add."""
    width, depth, heads = SIZES["XL"]
    with torch.device("meta"):
        plain, modern, text = (
            count(built(width=width, depth=depth, heads=heads, **changes))
            for changes in ({}, MODERN, {"context_dim": 1024, "qk_norm": True})
        )
    norms, inner = 2 * width // heads, 8 * width // 3
    mlp, swiglu = (of_linear(width, n) + of_linear(m, width) for n, m in ((4 * width, 4 * width), (2 * inner, inner)))
    assert modern - plain == depth * (norms + swiglu - mlp) == 47_040
    cross = 2 * of_linear(width, width) + of_linear(1024, 2 * width) + norms
    assert text - plain == depth * (norms + cross) == 140_515_200


@pytest.mark.parametrize("size", SIZES)
def test_diffusers_has_as_many_parameters_but_for_an_embedder_in_every_block(size):
    diffusers = pytest.importorskip("diffusers")
    width, depth, heads = SIZES[size]
    with torch.device("meta"):
        model = built(width=width, depth=depth, heads=heads, num_classes=1001)
        peer = diffusers.DiTTransformer2DModel(
            num_attention_heads=heads, attention_head_dim=width // heads, num_layers=depth
        )
    embedder = count(model.time_embed) + count(model.class_embedding)
    assert count(peer) == count(model) + (depth - 1) * embedder


def diffusers_peer(model, rows, columns):
    """diffusers' DiT with the weights of ``model``, our embeddings of time and place, and LayerNorms of our eps.

    diffusers' frequencies end one step later than the paper's and its places are numbered otherwise; it embeds time and
    class in every block anew.
    """
    library = pytest.importorskip("diffusers")
    peer = library.DiTTransformer2DModel(
        num_attention_heads=model.heads,
        attention_head_dim=model.width // model.heads,
        num_layers=len(model.blocks),
        sample_size=rows * model.patch,
        patch_size=model.patch,
        num_embeds_ada_norm=model.num_classes - 1,
        norm_eps=1e-6,
    )
    theirs = peer.double().eval()
    theirs.pos_embed.pos_embed = position_embedding(rows, columns, model.width).flatten(2).transpose(1, 2)
    theirs.pos_embed.height, theirs.pos_embed.width = rows, columns
    own = model.state_dict()
    conv = own["patch_embedding.weight"].view(model.width, -1, model.patch, model.patch)
    last = {k: own[f"final_layer.linear.{k}"] for k in ("weight", "bias")}
    channels_last = {k: v.unflatten(0, (4, model.patch**2)).transpose(0, 1).flatten(0, 1) for k, v in last.items()}
    weights = {
        "pos_embed.proj.weight": conv,
        "pos_embed.proj.bias": own["patch_embedding.bias"],
        **{f"proj_out_1.{k}": own[f"final_layer.modulation.1.{k}"] for k in last},
        **{f"proj_out_2.{k}": v for k, v in channels_last.items()},
    }
    for i in range(len(model.blocks)):
        to, emb = f"transformer_blocks.{i}", f"transformer_blocks.{i}.norm1.emb"
        weights[f"{emb}.class_embedder.embedding_table.weight"] = own["class_embedding.weight"]
        for k in last:
            weights[f"{emb}.timestep_embedder.linear_1.{k}"] = own[f"time_embed.0.{k}"]
            weights[f"{emb}.timestep_embedder.linear_2.{k}"] = own[f"time_embed.2.{k}"]
            weights[f"{to}.norm1.linear.{k}"] = own[f"blocks.{i}.modulation.1.{k}"]
            for name, part in zip("qkv", own[f"blocks.{i}.attention.qkv.{k}"].chunk(3)):
                weights[f"{to}.attn1.to_{name}.{k}"] = part
            weights[f"{to}.attn1.to_out.0.{k}"] = own[f"blocks.{i}.attention.proj.{k}"]
            weights[f"{to}.ff.net.0.proj.{k}"] = own[f"blocks.{i}.mlp.fc1.{k}"]
            weights[f"{to}.ff.net.2.{k}"] = own[f"blocks.{i}.mlp.fc2.{k}"]
        theirs.transformer_blocks[i].norm1.emb.time_proj.forward = lambda t: timestep_embedding(t, FREQUENCIES)
    theirs.load_state_dict(weights)
    return theirs


@pytest.mark.parametrize("patch", [2, 4])
def test_parity_with_diffusers_block_by_block(draw, randomise, patch):
    model = randomise(built(num_classes=4, depth=3, patch=patch), std=0.3).double()
    peer, seen = diffusers_peer(model, 3, 3), {"own": [], "theirs": []}
    for key, blocks in (("own", model.blocks), ("theirs", peer.transformer_blocks)):
        for block in blocks:
            block.register_forward_hook(lambda *call, key=key: seen[key].append(call[-1]))
    x, t, label = draw(2, 4, 3 * patch, 3 * patch).double(), torch.tensor([3, 700]), torch.tensor([3, 1])
    with torch.no_grad():
        own, theirs = model(x, t, Conditioning(label=label)), peer(x, t, label).sample
    torch.testing.assert_close(seen["own"], seen["theirs"], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(own, theirs, atol=1e-10, rtol=1e-10)
    assert own.std() > 0.1

import pytest
import torch

from latentdiff.nn.dit_blocks import MLP, DiTBlock, FinalLayer, SelfAttention, SwiGLU, TokenAttention, xavier_
from latentdiff.nn.rotary import rotary_table

VARIANTS = [
    {},
    {"context_dim": 6},
    {"context_dim": 6, "qk_norm": True, "swiglu": True, "rms_norm": True},
]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomised(module):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return module


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("rotary", [None, rotary_table(2, 3, 4)])
def test_a_new_block_is_the_identity_and_a_trained_one_is_not(changes, rotary):
    torch.manual_seed(0)
    block = DiTBlock(width=8, heads=2, **changes)
    x, emb, context = draw(2, 6, 8), draw(2, 8, seed=1), draw(2, 5, 6, seed=2)
    assert torch.equal(block(x, emb, context, None, rotary), x)
    y = randomised(block)(x, emb, context, None, rotary)
    assert (y - x).abs().amax((1, 2)).min() > 0.1
    y.square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in block.parameters())


def test_the_embedding_shifts_scales_and_gates_both_branches():
    torch.manual_seed(0)
    block = randomised(DiTBlock(width=8, heads=2))
    x, emb = draw(2, 6, 8), draw(2, 8, seed=1)
    parts = (torch.nn.functional.silu(emb) @ block.modulation[1].weight.T + block.modulation[1].bias).view(2, 6, 1, 8)
    shift, scale, gate, shift2, scale2, gate2 = parts.unbind(1)

    def standard(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()

    expected = x + gate * block.attention(standard(x) * (1 + scale) + shift)
    expected = expected + gate2 * block.mlp(standard(expected) * (1 + scale2) + shift2)
    torch.testing.assert_close(block(x, emb), expected, atol=1e-5, rtol=1e-5)


def test_self_attention_is_multi_head_attention():
    torch.manual_seed(0)
    own, oracle = randomised(SelfAttention(width=8, heads=2)), torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        oracle.in_proj_weight.copy_(own.qkv.weight)
        oracle.in_proj_bias.copy_(own.qkv.bias)
        oracle.out_proj.load_state_dict(own.proj.state_dict())
    x = draw(2, 5, 8)
    torch.testing.assert_close(own(x), oracle(x, x, x)[0], atol=1e-5, rtol=1e-5)


def test_token_attention_is_multi_head_attention_to_the_tokens_that_count():
    torch.manual_seed(0)
    own = randomised(TokenAttention(width=8, heads=2, context_dim=6))
    oracle = torch.nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)
    with torch.no_grad():
        oracle.q_proj_weight.copy_(own.q.weight)
        oracle.k_proj_weight.copy_(own.kv.weight[:8])
        oracle.v_proj_weight.copy_(own.kv.weight[8:])
        oracle.in_proj_bias.copy_(torch.cat([own.q.bias, own.kv.bias]))
        oracle.out_proj.load_state_dict(own.proj.state_dict())
    x, context = draw(2, 5, 8), draw(2, 4, 6, seed=1)
    mask = torch.tensor([[True] * 2 + [False] * 2, [True] * 4])
    expected = oracle(x, context, context, key_padding_mask=~mask)[0]
    torch.testing.assert_close(own(x, context, mask), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_with_qk_norm_the_size_of_queries_and_keys_does_not_matter(qk_norm):
    torch.manual_seed(0)
    own = xavier_(SelfAttention(width=8, heads=2, qk_norm=qk_norm))  # without biases
    cross = xavier_(TokenAttention(width=8, heads=2, context_dim=6, qk_norm=qk_norm))
    x, context = 4 * draw(2, 5, 8), 4 * draw(2, 4, 6, seed=1)
    before = own(x), cross(x, context)
    with torch.no_grad():
        own.qkv.weight[:16] *= 7
        cross.q.weight *= 5
        cross.kv.weight[:8] *= 3
    for new, old in zip((own(x), cross(x, context)), before):
        if qk_norm:
            torch.testing.assert_close(new, old, atol=1e-4, rtol=1e-4)
        else:
            assert (new - old).abs().max() > 0.1


def test_swiglu_is_silu_times_value_and_about_as_large_as_the_mlp():
    torch.manual_seed(0)
    glu, x = SwiGLU(8), draw(3, 8)
    gate, value = glu.gate_value(x).split(24, dim=-1)
    torch.testing.assert_close(glu(x), glu.out(gate * gate.sigmoid() * value))
    assert {width: SwiGLU(width).out.in_features for width in (160, 1024, 1152)} == {160: 432, 1024: 2736, 1152: 3072}
    sizes = [sum(p.numel() for p in kind(1024).parameters()) for kind in (SwiGLU, MLP)]
    assert sizes[0] == pytest.approx(sizes[1], rel=3e-3)


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    block = randomised(DiTBlock(width=8, heads=2, context_dim=6, dropout=0.5))
    x, emb, context = draw(2, 6, 8), draw(2, 8, seed=1), draw(2, 5, 6, seed=2)
    assert not torch.equal(block(x, emb, context), block(x, emb, context))
    block.eval()
    assert torch.equal(block(x, emb, context), block(x, emb, context))


def test_the_final_layer_starts_as_zero():
    layer = FinalLayer(width=8, out_features=12)
    y = layer(draw(2, 6, 8), draw(2, 8))
    assert y.shape == (2, 6, 12)
    assert not y.any()
    assert randomised(layer)(draw(2, 6, 8), draw(2, 8)).abs().max() > 0.1


def test_linear_layers_start_as_in_the_paper_s_code():
    torch.manual_seed(0)
    block = DiTBlock(width=64, heads=2)
    bound = (6 / (64 + 3 * 64)) ** 0.5  # uniform Xavier of 64 inputs and 3 * 64 outputs
    weight = block.attention.qkv.weight.detach()
    assert 0.98 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not any(p.any() for name, p in block.named_parameters() if name.endswith("bias"))

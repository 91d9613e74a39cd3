import pytest
import torch

from latentdiff.nn.attention import AttentionBlock, CrossAttention, SpatialTransformer, _WeightsAgain, attend


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_hand(q, k, v, mask=None, bias=None):
    logits = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    if bias is not None:
        logits = logits + bias.double()
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None, :], -torch.inf)
    return torch.softmax(logits, -1) @ v.double()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_attend_is_softmax_attention(dtype, tolerance, masked, biased):
    q, k, v = (
        draw(2, 3, 5, 8, dtype=dtype),
        draw(2, 3, 7, 8, seed=1, dtype=dtype),
        draw(2, 3, 7, 8, seed=2, dtype=dtype),
    )
    mask = torch.tensor([[True] * 4 + [False] * 3, [True] * 7]) if masked else None
    bias = draw(3, 5, 7, seed=3) if biased else None
    expected = by_hand(q, k, v, mask, bias)
    torch.testing.assert_close(attend(q, k, v, mask, bias).double(), expected, atol=tolerance, rtol=tolerance)


def test_computing_the_weights_again_gives_the_gradients_of_softmax_attention():
    q, k, v = (draw(3, n, 4, seed=i, dtype=torch.float64).requires_grad_() for i, n in enumerate((5, 7, 7)))
    assert torch.autograd.gradcheck(lambda *x: _WeightsAgain.apply(*x, 0.5), (q, k, v))


@pytest.mark.parametrize("bias", [None, torch.ones(1, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sample_without_any_key_gets_zeros_and_finite_gradients(dtype, bias):
    q, k, v = (draw(2, 1, 3, 4, seed=i, dtype=dtype).requires_grad_() for i in range(3))
    y = attend(q, k, v, torch.tensor([[False] * 3, [True] * 3]), bias)
    y.sum().backward()
    assert y[0].abs().sum() == 0
    assert y[1].abs().sum() > 0
    assert all(p.grad.isfinite().all() for p in (q, k, v))


def test_attention_block_is_multi_head_attention_with_rows_grouped_by_head():
    torch.manual_seed(0)
    block = AttentionBlock(channels=8, heads=2, norm_groups=4)
    torch.nn.init.normal_(block.proj_out.weight)
    torch.nn.init.normal_(block.qkv.bias)
    oracle = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    rows = torch.arange(24).view(2, 3, 4).transpose(0, 1).flatten()  # (head, qkv, width) -> (qkv, head, width)
    with torch.no_grad():
        oracle.in_proj_weight.copy_(block.qkv.weight[rows, :, 0])
        oracle.in_proj_bias.copy_(block.qkv.bias[rows])
        oracle.out_proj.weight.copy_(block.proj_out.weight[:, :, 0])
        oracle.out_proj.bias.copy_(block.proj_out.bias)
    x = draw(2, 8, 3, 4)
    h = torch.nn.functional.group_norm(x, 4).flatten(2).transpose(1, 2)
    expected = x + oracle(h, h, h)[0].transpose(1, 2).view_as(x)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("use_linear", [False, True])
def test_spatial_transformer_starts_as_the_identity(use_linear):
    block = SpatialTransformer(channels=8, heads=2, context_dim=6, use_linear=use_linear, norm_groups=4)
    x = draw(2, 8, 3, 4)
    assert torch.equal(block(x, draw(2, 5, 6)), x)


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="10 is not divisible by 4"):
        CrossAttention(width=10, heads=4)

import torch

from latentdiff.nn.norms import RMSNorm


def test_rms_norm_is_torch_s_and_its_weight_starts_at_one():
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, own = RMSNorm(8, affine=False), RMSNorm(8).double()
    expected = torch.nn.functional.rms_norm(x, (8,), eps=1e-6)
    torch.testing.assert_close(plain(x), expected)
    torch.testing.assert_close(own(x), expected)
    assert [p.shape for p in own.parameters()] == [(8,)]
    assert not list(plain.parameters())


def test_rms_norm_keeps_the_dtype_and_computes_in_float32():
    # neighbours of 1 in bfloat16: in that dtype their squares' mean would be 1 and the norm nothing
    x = torch.tensor([[1.0, 1 + 2**-7, 1 + 2**-6, 1 + 2**-6]]).bfloat16()
    y = RMSNorm(4)(x)
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, (x.double() / x.double().square().mean().sqrt()).bfloat16())
    assert not torch.equal(y, x)

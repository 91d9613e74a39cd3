import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.models.text_transformer import TextTransformer


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TextTransformer(width=16, layers=2, heads=4, max_length=8, vocab_size=50)


TOKENS = torch.tensor([[3, 7, 9, 0, 0], [5, 6, 7, 8, 9]])
MASK = torch.tensor([[True, True, True, False, False], [True] * 5])


def test_masked_tokens_do_not_matter(model):
    with torch.no_grad():
        y = model(TOKENS, MASK)
        padded = TOKENS.masked_fill(~MASK, 42)
        torch.testing.assert_close(model(padded, MASK)[MASK], y[MASK])
        torch.testing.assert_close(model(TOKENS[:1, :3], MASK[:1, :3])[0], y[0, :3], atol=1e-5, rtol=1e-5)


def test_it_reads_both_ways_and_knows_positions(model):
    with torch.no_grad():
        y = model(TOKENS, MASK)
        later = TOKENS.clone()
        later[1, 4] = 30
        assert (model(later, MASK)[1, 0] - y[1, 0]).abs().max() > 1e-5
        swapped = TOKENS[:, [1, 0, 2, 3, 4]]
        assert (model(swapped, MASK)[:, 0] - y[:, 1]).abs().max() > 1e-4


def test_features_are_normalised_and_gradients_reach_everything(model):
    y = model(TOKENS, MASK)
    assert y.shape == (2, 5, 16)
    torch.testing.assert_close(y.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    (y * torch.arange(16.0)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_too_long_a_text_is_refused(model):
    with pytest.raises(InputError, match="9 tokens, max_length is 8"):
        model(torch.zeros(1, 9, dtype=torch.int64), None)


def test_relative_bias_tells_distance_and_direction():
    torch.manual_seed(0)
    bias = TextTransformer(width=16, layers=1, heads=4, max_length=6).blocks[0].relative_bias
    start = bias(4)
    assert start.shape == (4, 4, 4)
    torch.testing.assert_close(start[0], -(torch.arange(4)[None] - torch.arange(4)[:, None]).abs().float())
    assert (start[1:, 0, 3] > start[:-1, 0, 3]).all()  # later heads look further
    with torch.no_grad():
        bias.table.copy_(torch.arange(11.0).expand(4, -1))
    assert bias(3)[0].tolist() == [[5.0, 6.0, 7.0], [4.0, 5.0, 6.0], [3.0, 4.0, 5.0]]


def test_relative_bias_learns():
    torch.manual_seed(0)
    model = TextTransformer(width=16, layers=2, heads=4, max_length=6)
    model(torch.tensor([[1, 2, 3, 4]])).square().sum().backward()
    for block in model.blocks:
        assert block.relative_bias.table.grad.abs().sum() > 0

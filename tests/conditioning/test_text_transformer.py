import pytest
import torch

from latentdiff.conditioning.hf_tokenizer import HfTokenizer
from latentdiff.conditioning.text_transformer import TextTransformerConditioner
from latentdiff.config.errors import InputError
from latentdiff.models.text_transformer import TextTransformer
from latentdiff.types import Batch

CAPTIONS = ["a red circle", "a blue box on white", ""]


@pytest.fixture
def conditioner():
    torch.manual_seed(0)
    return TextTransformerConditioner(transformer=TextTransformer(width=8, layers=1, heads=2, max_length=10), drop=0.5)


def batch(captions):
    return Batch(keys=[str(i) for i in range(len(captions))], caption=captions)


def test_tokens_are_the_transformers_on_the_tokenizers_ids(conditioner):
    with torch.no_grad():
        cond = conditioner(batch(CAPTIONS))
        ids, mask = conditioner.tokenizer(CAPTIONS)
        torch.testing.assert_close(cond.tokens, conditioner.transformer(ids, mask))
    assert torch.equal(cond.mask, mask)
    assert cond.tokens.shape == (3, 10, 8)
    assert cond.vector is None
    assert cond.spatial is None


def test_real_tokens_do_not_depend_on_the_padding(conditioner):
    """A longer padded transformer with the same weights gives the same features of the real tokens."""
    longer = TextTransformerConditioner(transformer=TextTransformer(width=8, layers=1, heads=2, max_length=14))
    state = conditioner.transformer.state_dict()
    extra = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    state["position_embedding"] = torch.cat([state["position_embedding"], extra])
    bias = "blocks.0.relative_bias.table"  # distances from -9 to 9 are in the middle of those from -13 to 13
    state[bias] = torch.nn.functional.pad(state[bias], (4, 4))
    longer.transformer.load_state_dict(state)
    with torch.no_grad():
        a, b = conditioner(batch(CAPTIONS)), longer(batch(CAPTIONS))
    assert torch.equal(a.mask, b.mask[:, :10])
    torch.testing.assert_close(b.tokens[:, :10][a.mask], a.tokens[a.mask], atol=1e-6, rtol=1e-5)


def test_gradients_reach_the_transformer_through_both_conditions(conditioner):
    (
        conditioner(batch(CAPTIONS)).tokens.square().sum() + conditioner.null(batch(["", ""])).tokens[..., 0].sum()
    ).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in conditioner.transformer.parameters())


def test_reads_berts_word_pieces_where_they_are_asked_for(bert):
    transformer = TextTransformer(width=8, layers=1, heads=2, max_length=10, vocab_size=14)
    tokenizer = HfTokenizer(model=str(bert), max_length=6)
    conditioner = TextTransformerConditioner(transformer=transformer, tokenizer=tokenizer)
    with torch.no_grad():
        cond = conditioner(batch(["a red circle", "a red circle on white"]))
        pieces = torch.tensor([[2, 5, 6, 8, 3, 0], [2, 5, 6, 8, 10, 3]])
        torch.testing.assert_close(cond.tokens, transformer(pieces, pieces != 0))
    assert torch.equal(cond.mask, pieces != 0)
    assert conditioner.truncated == 1
    assert conditioner.cut_captions(["a red circle on white"]) == [("a red circle on white", 7)]


def test_a_tokenizer_that_the_transformer_has_no_embeddings_for_is_an_input_error(bert):
    small = TextTransformer(width=8, layers=1, heads=2, max_length=5, vocab_size=13)
    with pytest.raises(InputError, match=r"transformer\.vocab_size: the tokenizer needs 14, got 13"):
        TextTransformerConditioner(transformer=small, tokenizer=HfTokenizer(model=str(bert), max_length=5))
    small = TextTransformer(width=8, layers=1, heads=2, max_length=5, vocab_size=14)
    with pytest.raises(InputError, match=r"transformer\.max_length: the tokenizer needs 6, got 5"):
        TextTransformerConditioner(transformer=small, tokenizer=HfTokenizer(model=str(bert), max_length=6))

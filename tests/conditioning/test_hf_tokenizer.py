import json
import shutil

import pytest
import torch

from latentdiff.conditioning.hf_tokenizer import HfTokenizer
from latentdiff.config.errors import InputError


def test_word_pieces_are_berts(bert):
    """By hand: the vocabulary's line numbers, with [CLS] 2 and [SEP] 3 around, [PAD] 0 after."""
    tokenizer = HfTokenizer(model=str(bert), max_length=7)
    ids, mask = tokenizer(["A red circles", "", "a heart"])
    assert ids.tolist() == [[2, 5, 6, 8, 12, 3, 0], [2, 3, 0, 0, 0, 0, 0], [2, 5, 1, 3, 0, 0, 0]]
    assert torch.equal(mask, torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0]]).bool())
    assert ids.dtype == torch.int64
    assert tokenizer.vocab_size == 14
    assert tokenizer.truncated == 0


def test_pieces_are_those_of_sentencepiece(t5):
    """Its own library is the oracle; T5 adds the end token 1."""
    import sentencepiece

    captions = ["two blue boxes", "a heart on a red star", ""]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(t5 / "spiece.model"))
    ids, mask = HfTokenizer(model=str(t5), max_length=40)(captions)
    for row, kept, caption in zip(ids, mask, captions):
        assert row[kept].tolist() == [*pieces.encode(caption), 1]
        assert not row[~kept].any()


def test_long_captions_keep_their_end_and_are_counted(bert):
    tokenizer = HfTokenizer(model=str(bert), max_length=5)
    captions = ["a red circle", "a red circle on white", "a red circle on a white star"]
    ids, mask = tokenizer(captions)
    assert ids.tolist() == [[2, 5, 6, 8, 3]] * 3
    assert mask.all()
    assert tokenizer.truncated == 2
    assert tokenizer.cut_captions(captions) == [(captions[1], 7), (captions[2], 9)]
    assert tokenizer.truncated == 2


def test_unfit_tokenizers_are_input_errors(bert, tmp_path):
    with pytest.raises(InputError, match=r"at least 1 .* got 0"):
        HfTokenizer(model=str(bert), max_length=0)
    with pytest.raises(InputError, match="neither a folder"):
        HfTokenizer(model=str(tmp_path / "nowhere"), max_length=8)
    bare = tmp_path / "bare"
    shutil.copytree(bert, bare)
    from tokenizers import Tokenizer, models, pre_tokenizers

    plain = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.save(str(bare / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (bare / "tokenizer_config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="no padding token"):
        HfTokenizer(model=str(bare), max_length=8)
    (bare / "tokenizer_config.json").write_text(json.dumps(about | {"pad_token": "[PAD]"}))
    with pytest.raises(InputError, match="no token for the empty caption"):
        HfTokenizer(model=str(bare), max_length=8)

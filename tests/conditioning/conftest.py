"""Small random text encoders of transformers with their tokenizers, in the file layouts of the published ones."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a red blue circle box on white ##s star"
SENTENCES = ["a red circle on white", "two blue boxes left of a star", "a heart", "a green ring"]


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Path:
    """Folder of a BERT with its pretraining heads, as ``bert-base-uncased`` has them, and word pieces."""
    import transformers

    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS.split()) + "\n")
    about = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 16}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    config = transformers.BertConfig(
        vocab_size=14,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    torch.manual_seed(0)
    transformers.BertForPreTraining(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def t5(tmp_path_factory) -> Path:
    """Folder of a T5 with its decoder and a sentencepiece model, which has no start token."""
    import sentencepiece
    import transformers

    folder = tmp_path_factory.mktemp("t5")
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 5),
        model_writer=pieces,
        vocab_size=28,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(pieces.getvalue())
    about = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    config = transformers.T5Config(
        vocab_size=32, d_model=8, d_kv=4, num_heads=2, d_ff=16, num_layers=3, num_decoder_layers=1
    )
    torch.manual_seed(0)
    transformers.T5Model(config).save_pretrained(folder)
    return folder

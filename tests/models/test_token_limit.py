import logging

import pytest

from latentdiff.models import token_limit
from latentdiff.models.token_limit import TokenLimit


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(token_limit, "_SAID", set())


def test_counts_captions_beyond_the_limit_and_not_those_at_it():
    limit = TokenLimit(reader="CLIP", limit=5)
    limit.count(["a", "b", "c"], [4, 5, 6])
    limit.count(["d"], [60])
    limit.count(["e"], [5])
    assert limit.truncated == 2
    assert limit.over(["a", "b", "c"], [4, 5, 6]) == [("c", 6)]
    assert limit.truncated == 2  # asking counts nothing


def test_warns_once_per_reader_with_the_first_caption_shortened(caplog):
    first, second = TokenLimit(reader="CLIP", limit=77), TokenLimit(reader="T5", limit=77)
    with caplog.at_level(logging.WARNING):
        first.count(["short"], [3])
        assert not caplog.records
        first.count(["short", "word " * 100], [3, 102])
        TokenLimit(reader="CLIP", limit=77).count(["another"], [99])
        second.count(["for the other reader"], [78])
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert all(part in texts[0] for part in ("CLIP reads 77 tokens", "of 102", "word ...'", "train/captions_cut"))
    assert len(texts[0]) < 300
    assert "for the other reader" in texts[1]

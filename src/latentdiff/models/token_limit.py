"""Captions that are longer than a text encoder reads: counted, and said once."""

from __future__ import annotations

import logging
import textwrap

log = logging.getLogger(__name__)
_SAID: set[str] = set()
"""Readers that have warned in this process; copies of a conditioner share it."""


class TokenLimit:
    """Keeps count of the captions that a tokenizer cuts at ``limit`` tokens, start and end tokens included.

    ``truncated`` counts captions on this process. The first one is logged as a warning, once per process and reader.

    Args:
        reader: who reads the captions, for the warning.
        limit: most tokens of a caption.
    """

    def __init__(self, *, reader: str, limit: int):
        self.reader, self.limit = reader, limit
        self.truncated = 0

    def over(self, captions: list[str], lengths: list[int]) -> list[tuple[str, int]]:
        """Those of the captions that are too long, each with the number of its tokens."""
        return [(caption, length) for caption, length in zip(captions, lengths) if length > self.limit]

    def count(self, captions: list[str], lengths: list[int]) -> None:
        """Captions that are about to be cut, with the number of tokens of each before."""
        cut = self.over(captions, lengths)
        self.truncated += len(cut)
        if not cut or self.reader in _SAID:
            return
        _SAID.add(self.reader)
        caption, length = cut[0]
        log.warning(
            "%s reads %d tokens; the end of a caption of %d is cut off: '%s'. Said once; in training the number of "
            "such captions is logged as train/captions_cut.",
            *(self.reader, self.limit, length, textwrap.shorten(caption, width=80, placeholder=" ...")),
        )

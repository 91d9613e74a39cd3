"""Captions from a text file, in the place of a data set's."""

from __future__ import annotations

from pathlib import Path

from latentdiff import durable
from latentdiff.config.errors import InputError
from latentdiff.types import Batch

SHOWN = 10
"""Line numbers in a message."""


class PromptFile:
    """One caption per line, UTF-8: line i, from 0, is the condition of image i. Called as the engine's ``Samples``.

    Raises:
        InputError: the file is missing, not UTF-8 or without captions; lines are empty.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            text = self.path.read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise InputError(f"prompts: '{path}' cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise InputError(f"prompts: '{path}' is not UTF-8 ({error}); save it as UTF-8") from error
        lines = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
        if not text.strip():
            raise InputError(f"prompts: '{path}' holds no caption; expected one per line")
        if empty := [number for number, line in enumerate(lines, start=1) if not line.strip()]:
            listed = ", ".join(map(str, empty[:SHOWN])) + (" ..." if len(empty) > SHOWN else "")
            raise InputError(
                f"prompts: {len(empty)} of {len(lines)} lines of '{path}' are empty (line {listed}); each line is the "
                "caption of one image: remove them or fill them in"
            )
        self.captions = lines
        self.sha256 = durable.sha256(self.path)

    def __len__(self) -> int:
        return len(self.captions)

    def __call__(self, indices: range) -> Batch:
        """The captions of these images. Raises InputError where there are fewer."""
        if indices.stop > len(self):
            raise InputError(
                f"prompts: '{self.path}' has {len(self)} captions, {indices.stop} or more are wanted; lower num_images "
                f"to {len(self)} or give more"
            )
        return Batch(keys=[f"line {i + 1}" for i in indices], caption=[self.captions[i] for i in indices])

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        return {"from": "prompts file", "sha256": self.sha256, "lines": len(self), "rule": "line i for image i"}

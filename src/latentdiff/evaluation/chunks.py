"""What was measured of each chunk of images, in files: an evaluation that is killed goes on where it stopped."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.durable import new_file
from latentdiff.types import Column, Rows

PICTURES = "pictures"
_JSON = ".json"


class ChunkFolder:
    """One file per chunk of consecutive images, named by the index of its first and the number of images.

    The processes of an evaluation share the folder: each writes the chunks that it made, whole or not at all, and all
    read all of them. Memory holds one chunk at a time, unless a whole column is asked for.

    Args:
        folder: on a file system that every process sees.
        chunks: of the whole evaluation, in order.
    """

    def __init__(self, folder: Path, chunks: list[range]):
        self.folder, self.chunks = folder, chunks
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, chunk: range) -> bool:
        return self._file(chunk).is_file()

    def done(self) -> int:
        """Images of the chunks that are there."""
        names = {path.name for path in self.folder.glob("*.npz")}
        return sum(len(chunk) for chunk in self.chunks if self._file(chunk).name in names)

    def write(self, chunk: range, columns: Mapping[str, Column], pictures: Tensor | None = None) -> None:
        """Columns of the chunk's images, and some of the images themselves, uint8 (n, 3, H, W), the chunk's first."""
        arrays = {}
        for name, column in columns.items():
            if len(column) != len(chunk):
                raise ValueError(f"'{name}' has {len(column)} rows for {len(chunk)} images")
            if isinstance(column, Tensor):
                arrays[name] = column.detach().cpu().numpy()
            else:
                arrays[name + _JSON] = np.frombuffer(json.dumps(column).encode(), dtype=np.uint8)
        if pictures is not None and len(pictures):
            arrays[PICTURES] = pictures.cpu().numpy()
        with new_file(self._file(chunk)) as staged, staged.open("wb") as file:
            np.savez(file, **arrays)

    def rows(self, prefix: str = "") -> Rows:
        """Those of all chunks; columns are named without the ``prefix``."""
        return _FolderRows(self, prefix)

    def pictures(self, most: int) -> Tensor:
        """The first images that were kept, at most ``most``, uint8 (n, 3, H, W)."""
        found: list[Tensor] = []
        for chunk in self.chunks:
            kept = self.read(chunk, PICTURES)
            if kept is None or most <= 0:
                break
            found.append(kept[:most])
            most -= len(kept)
        return torch.cat(found)

    def read(self, chunk: range, name: str) -> Column | None:
        """A column of one chunk, None where it has none. Raises InputError for a missing or damaged file."""
        path = self._file(chunk)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                if name in arrays:
                    return torch.from_numpy(arrays[name])
                return json.loads(arrays[name + _JSON].tobytes()) if name + _JSON in arrays else None
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(
                f"'{path}' cannot be read ({error}); the processes of an evaluation share its folder; if the file is "
                "damaged remove it, and the same command measures these images again"
            ) from error

    def _file(self, chunk: range) -> Path:
        return self.folder / f"{chunk.start:09d}-{len(chunk):06d}.npz"


class _FolderRows:
    """``Rows`` of a ``ChunkFolder``."""

    def __init__(self, folder: ChunkFolder, prefix: str):
        self._folder, self._prefix = folder, prefix

    def __len__(self) -> int:
        return sum(map(len, self._folder.chunks))

    def column(self, name: str) -> Column:
        parts = [self._read(chunk, name) for chunk in self._folder.chunks]
        return torch.cat(parts) if isinstance(parts[0], Tensor) else [row for part in parts for row in part]

    def blocks(self, name: str) -> Iterator[Tensor]:
        return (self._read(chunk, name) for chunk in self._folder.chunks)

    def _read(self, chunk: range, name: str) -> Column:
        found = self._folder.read(chunk, self._prefix + name)
        if found is None:
            raise KeyError(f"{self._prefix}{name}")
        return found

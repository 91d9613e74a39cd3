"""An evaluation's images as files: one PNG each, or one .npz in ADM's format."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentdiff.config.errors import InputError
from latentdiff.durable import new_file
from latentdiff.types import Batch

FOLDER, ARRAYS = "samples", "samples.npz"


class SampleFiles(Protocol):
    """Where images are kept: ``keep`` as ``engine.fill`` calls ``on_images``, on any rank; ``finish`` once, by one
    process, when all are kept."""

    def keep(self, images: Tensor, batch: Batch) -> None: ...
    def finish(self, chunks: list[range]) -> Path: ...


class PngSamples:
    """``folder/samples/000000.png`` and so on, named by the image's index."""

    def __init__(self, folder: Path):
        self.folder = folder / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)

    def keep(self, images: Tensor, batch: Batch) -> None:
        for index, image in enumerate(images.cpu(), start=batch.start):
            with new_file(self.folder / f"{index:06d}.png") as staged:
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(staged, format="PNG")

    def finish(self, chunks: list[range]) -> Path:
        """Removes what a larger evaluation has left here."""
        for path in self.folder.glob("*.png"):
            if path.stem.isdecimal() and int(path.stem) >= chunks[-1].stop:
                path.unlink()
        return self.folder


class NpzSamples:
    """``folder/samples.npz`` in ADM's format (arXiv:2105.05233): ``arr_0``, uint8 (N, H, W, 3), and ``arr_1``, int64
    (N,), the classes, where the model reads them. One chunk is in memory at a time.

    Args:
        scratch: holds the chunks until all are there.
    """

    def __init__(self, folder: Path, scratch: Path, *, labels: bool):
        self.path, self.scratch, self.labels = folder / ARRAYS, scratch, labels
        scratch.mkdir(parents=True, exist_ok=True)

    def keep(self, images: Tensor, batch: Batch) -> None:
        arrays = {"arr_0": images.cpu().permute(0, 2, 3, 1).contiguous().numpy()}
        if self.labels and batch.label is not None:
            arrays["arr_1"] = batch.label.to("cpu", torch.int64).numpy()
        with new_file(self._part(batch.start)) as staged, staged.open("wb") as file:
            np.savez(file, **arrays)

    def finish(self, chunks: list[range]) -> Path:
        """Joins the chunks. Raises InputError where one is missing."""
        with np.load(self._there(chunks[0]), allow_pickle=False) as first:
            shapes = {name: (first[name].dtype, first[name].shape[1:]) for name in first.files}
        total = sum(map(len, chunks))
        with new_file(self.path) as staged, zipfile.ZipFile(staged, "w", allowZip64=True) as archive:
            for name, (dtype, shape) in shapes.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
                    np.lib.format.write_array_header_1_0(member, {**head, "shape": (total, *shape)})
                    for rows in self._rows(name, chunks):
                        member.write(np.ascontiguousarray(rows).tobytes())
        return self.path

    def _rows(self, name: str, chunks: list[range]) -> Iterable[np.ndarray]:
        for chunk in chunks:
            with np.load(self._there(chunk), allow_pickle=False) as arrays:
                yield arrays[name]

    def _part(self, start: int) -> Path:
        return self.scratch / f"{start:09d}.npz"

    def _there(self, chunk: range) -> Path:
        if not (path := self._part(chunk.start)).is_file():
            raise InputError(f"save_samples: '{path}' is gone, the images cannot be joined; begin in another run_dir")
        return path

"""Arrays of .npz files of any origin: no pickle is opened, and large ones are read row by row."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from latentdiff.config.errors import InputError

DAMAGE = (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, KeyError)


@contextmanager
def opened_npz(path: str | Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of a file by name, each read when it is asked for.

    Raises InputError for what is no .npz file or is damaged, and for arrays of objects, which only unpickling reads.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise InputError(f"'{path}' holds a single array; expected an .npz file with named ones")
            yield arrays
    except InputError:
        raise
    except DAMAGE as error:
        pickled = "pickle" in str(error)
        why = "holds pickled objects, which can run any program and are not opened" if pickled else "cannot be read"
        raise InputError(f"'{path}' {why} ({error}); expected an .npz file of plain arrays") from error


class NpzMember:
    """One array of an .npz file, row by row, compressed or not.

    Rows are best asked for in ascending order: the file is read forwards, and from its beginning where one before is
    wanted. Each process opens its own.

    Raises:
        InputError: no such array, or one that is not plain numbers in C order.
    """

    def __init__(self, path: str | Path, name: str):
        self.path, self.name = Path(path), name
        self._file = None
        with self._saying():
            self._archive = zipfile.ZipFile(path)
            self._file = self._archive.open(f"{name}.npy")
            version = np.lib.format.read_magic(self._file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            self.shape, fortran, self.dtype = read(self._file)
        if fortran or self.dtype.hasobject or not self.shape:
            raise InputError(f"'{path}': expected '{name}' as plain numbers in C order, got {self.dtype} {self.shape}")
        self._begin = self._file.tell()
        self._row = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def row(self, index: int) -> np.ndarray:
        """(*shape[1:])."""
        with self._saying():
            self._file.seek(self._begin + index * self._row)
            content = self._file.read(self._row)
            return np.frombuffer(content, self.dtype).reshape(self.shape[1:])

    @contextmanager
    def _saying(self) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            raise InputError(f"'{self.path}': the array '{self.name}' cannot be read ({error})") from error

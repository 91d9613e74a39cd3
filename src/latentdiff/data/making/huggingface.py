"""Data sets of HuggingFace's ``datasets``, from its hub or from a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from latentdiff.config.errors import InputError
from latentdiff.data.making.columns import Columns
from latentdiff.data.making.source import Row, stamp

_DEFAULT_SPLIT = "train"
_SAVED = ("state.json", "dataset_dict.json")
"""What ``save_to_disk`` leaves in its folder."""


class HuggingFaceSource:
    """A split of a data set: by its name on the hub, or a folder that ``save_to_disk`` wrote or that holds Parquet
    files, images or what else ``datasets.load_dataset`` takes. None: 'train', or all of a set saved without splits.

    Images come as they are stored, undecoded. Further columns of text and numbers are kept in the ``.json``. A label
    column with named classes gives ``classes``. Raises InputError where the set, the split or a column is missing, or
    datasets is not installed.
    """

    def __init__(self, name: str, split: str | None, columns: Columns) -> None:
        self.name = name
        self.split = split
        where = name if split is None else f"{name} ({split})"
        data = _load(name, split)
        self.columns = columns.among(data.column_names, where)
        features = data.features
        own = {self.columns.image, self.columns.caption, self.columns.label}
        plain = [key for key, kind in features.items() if key in own or type(kind).__name__ == "Value"]
        data = data.select_columns(plain)
        if type(features[self.columns.image]).__name__ == "Image":
            data = data.cast_column(self.columns.image, type(features[self.columns.image])(decode=False))
        self.classes = getattr(features[self.columns.label], "names", None) if self.columns.label else None
        self._data = data
        if not len(data):
            raise InputError(f"{where} has no rows")

    def __len__(self) -> int:
        return len(self._data)

    def rows(self, start: int) -> Iterator[Row]:
        for number, record in enumerate(self._data.select(range(start, len(self))), start=start):
            yield self.columns.row(f"{self.name} row {number}", record, Path())

    def identity(self) -> dict[str, object]:
        columns = [self.columns.image, self.columns.caption, self.columns.label]
        files = [stamp(Path(file["filename"])) for file in self._data.cache_files]
        return {"dataset": self.name, "split": self.split, "columns": columns, "rows": len(self), "files": files}


def _load(name: str, split: str | None):
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "HuggingFace data sets need datasets; install it with: pip install 'latentdiff[shards]'"
        ) from error
    folder = Path(name)
    wanted = split or _DEFAULT_SPLIT
    try:
        if not any((folder / saved).is_file() for saved in _SAVED):
            return datasets.load_dataset(name, split=wanted)
        data = datasets.load_from_disk(name)
        if isinstance(data, datasets.DatasetDict):
            return data[wanted]
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"cannot load '{name}', split '{wanted}', with datasets: {error}") from error
    if split not in (None, data.split):
        raise InputError(f"{name} was saved without splits, so there is no '{split}'; name it as hf:{name}")
    return data

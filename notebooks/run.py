"""Executes notebooks: ``python notebooks/run.py [NAME ...]`` writes the committed outputs, at full length."""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

import latentdiff

HERE = Path(__file__).resolve().parent
PARAMETERS = "parameters"
"""Tag of the cell that others may follow with values of their own, as papermill does."""
COLOURS = 256
"""Of the pictures in a committed notebook."""
QUIET = "ignore:IProgress not found"
"""Of tqdm, where ipywidgets is not installed."""


class Kernel:
    """A Python kernel in ``folder`` for one notebook after the other: torch is imported once, names are not kept."""

    def __init__(self, folder: Path) -> None:
        resources = {"metadata": {"path": str(folder)}}
        self._client = NotebookClient(nbformat.v4.new_notebook(), timeout=1800, resources=resources)
        source = str(Path(latentdiff.__file__).resolve().parents[1])
        self._environment = {**os.environ, "PYTHONPATH": source, "PYTHONWARNINGS": QUIET}

    def __enter__(self) -> Kernel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client.km is not None and self._client.km.has_kernel:
            self._client._cleanup_kernel()

    def execute(self, notebook: NotebookNode, parameters: Mapping[str, object] | None = None) -> None:
        """Puts the outputs into ``notebook``. ``parameters`` take the place of those it is tagged with.

        Raises CellExecutionError, of nbclient, where a cell fails; ValueError for a parameter that it does not have.
        """
        cells = _with(notebook.cells, dict(parameters or {}))
        self._client.nb = nbformat.v4.new_notebook(metadata=notebook.metadata, cells=cells)
        self._client.execute(cleanup_kc=False, env=self._environment)


def _with(cells: list[NotebookNode], parameters: dict[str, object]) -> list[NotebookNode]:
    """The cells, after one that forgets an earlier notebook's names, with one that sets the parameters."""
    place = next(i for i, cell in enumerate(cells) if PARAMETERS in cell.metadata.get("tags", []))
    known = {line.partition(" =")[0] for line in cells[place].source.splitlines()}
    if unknown := parameters.keys() - known:
        raise ValueError(f"the notebook has no parameters {sorted(unknown)}; it has {sorted(known)}")
    given = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    new = nbformat.v4.new_code_cell
    return [new("%reset -f"), *cells[: place + 1], new(given), *cells[place + 1 :]]


def tidy(notebook: NotebookNode) -> None:
    """Leaves nothing in the file that another run would change: counts from 1, no times, no kernel's version."""
    count = 0
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = _small(output.data["image/png"])
    notebook.metadata.language_info = {"name": "python"}


def _small(png: str) -> str:
    """A base64 PNG in ``COLOURS`` colours: less than half the bytes, and the eye sees no difference."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    file = io.BytesIO()
    picture.quantize(COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        file, "PNG", optimize=True
    )
    return base64.b64encode(file.getvalue()).decode()


def main(names: list[str]) -> None:
    paths = [path for path in sorted(HERE.glob("*.ipynb")) if not names or any(name in path.name for name in names)]
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            notebook, began = nbformat.read(path, as_version=4), time.perf_counter()
            with Kernel(Path(folder)) as kernel:
                kernel.execute(notebook)
            tidy(notebook)
            nbformat.write(notebook, path)
            print(f"{path.name}: {time.perf_counter() - began:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""The notebooks run at small sizes, with the assertions in them; their committed outputs are what a run leaves."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

HOME = Path(__file__).parents[2] / "notebooks"
PATHS = {path.stem[:2]: path for path in sorted(HOME.glob("*.ipynb"))}
TRAINING = {"images": 192, "ae_batches": 10, "ldm_batches": 10}
SMALL = {
    "01": TRAINING,
    "02": {"samples": 1000},
    "03": {"images": 192, "ae_batches": 10, "count": 48},
    "04": {**TRAINING, "count": 24},
    "05": {**TRAINING, "images": 60, "count": 16},
}
LARGEST_KB = 300
OF_A_MACHINE = re.compile(r"/(home|root|tmp|work|usr|Users|private|var)/|[A-Z]:\\\\|Warning|WARNING|\bit/s\b")


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("notebooks_run", HOME / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kernel(runner, tmp_path_factory):
    """One for all, in a folder whose models later notebooks find as a reader's would."""
    with runner.Kernel(tmp_path_factory.mktemp("notebooks")) as kernel:
        yield kernel


def test_every_notebook_has_a_small_size():
    assert PATHS.keys() == SMALL.keys()


@pytest.mark.parametrize("name", SMALL)
def test_runs_and_its_claims_hold_at_a_small_size(name, kernel):
    kernel.execute(nbformat.read(PATHS[name], as_version=4), SMALL[name])


@pytest.mark.parametrize("name", SMALL)
def test_committed_outputs_are_those_of_one_whole_run(name):
    path = PATHS[name]
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert not OF_A_MACHINE.search("".join(texts(outputs)))
    assert path.stat().st_size <= LARGEST_KB * 1000


def texts(outputs):
    for output in outputs:
        yield output.get("text", "")
        yield from (value for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def test_an_unknown_parameter_is_refused(kernel):
    with pytest.raises(ValueError, match=r"no parameters \['batches'\]; it has \['samples'\]"):
        kernel.execute(nbformat.read(PATHS["02"], as_version=4), {"batches": 1})


def test_names_of_one_notebook_are_gone_in_the_next(kernel):
    cells = [nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["parameters"]})]
    kernel.execute(nbformat.v4.new_notebook(cells=cells), {"x": 2})
    cells.append(nbformat.v4.new_code_cell("assert 'Path' not in dir() and 'torch' not in dir()\nx"))
    kernel.execute(nbformat.v4.new_notebook(cells=cells))
    assert cells[1].outputs[0]["data"]["text/plain"] == "1"

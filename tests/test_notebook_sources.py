"""The notebooks as committed: empty of outputs, in the form that the runner and the reader rely on."""

import ast
import re
import statistics

import nbformat
import pytest

from lmclip.paths import NOTEBOOKS
from lmclip.study import STUDY

SOURCES = sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(params=SOURCES, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag):
    return [cell for cell in code(notebook) if tag in cell.metadata.get("tags", [])]


def test_the_runner_knows_every_notebook():
    assert [path.stem for path in SOURCES] == [notebook.name for notebook in STUDY]


def test_outputs_are_stripped(notebook):
    nbformat.validate(notebook)
    for cell in code(notebook):
        assert cell.outputs == [] and cell.execution_count is None
        assert set(cell.metadata) <= {"tags"}
    assert notebook.metadata.get("language_info", {"name": "python"}) == {"name": "python"}
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}


def test_any_python_3_kernel_runs_it(notebook):
    assert notebook.metadata.kernelspec == {"name": "python3", "language": "python", "display_name": "Python 3"}


def test_one_parameters_cell_of_typed_and_explained_literals(notebook):
    (cell,) = tagged(notebook, "parameters")
    lines = cell.source.splitlines()
    for line in lines:
        assert re.fullmatch(r"\w+: \w+(\[.*\])? = [^=]+  # [^=]+", line), line
        ast.literal_eval(line.split(" = ")[1].split("  # ")[0])
    assert [line.split(":")[0] for line in lines[:2]] == ["profile", "smoke"]


def test_the_last_cell_of_code_is_tagged_done(notebook):
    assert tagged(notebook, "done") == [code(notebook)[-1]]


def test_it_opens_with_a_title(notebook):
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")


def test_a_cell_says_one_thing(notebook):
    lines = [len([line for line in cell.source.splitlines() if line.strip()]) for cell in code(notebook)]
    assert statistics.median(lines) <= 6
    assert sum(count < 15 for count in lines) >= 0.9 * len(lines)
    assert max(lines) <= 30


def test_no_folder_of_a_machine_is_named(notebook):
    for cell in notebook.cells:
        assert not re.search(r"(?<![\w.~:/])/(home|root|tmp|work|Users|mnt)/", cell.source)
        assert "../" not in cell.source or cell.cell_type == "markdown"

"""A lesson that is broken on purpose is caught, and by what: nbval, or the conventions where nbval sees nothing."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from dfqlab.lab.conventions import problems
from dfqlab.lab.definitions import library_names
from dfqlab.lessons import find_lesson, lessons_folder

LESSON = find_lesson("01")
EXACT = "nbval-check-output"


@pytest.fixture(scope="module")
def whole() -> Any:
    return nbformat.read(lessons_folder() / LESSON.file, as_version=4)


@pytest.fixture(scope="module")
def beginning(whole: Any) -> Any:
    """The lesson up to its first output that must be exact, which is enough to break it, and quick."""
    notebook = copy.deepcopy(whole)
    last = next(i for i, cell in enumerate(notebook.cells) if EXACT in cell.metadata.get("tags", []))
    notebook.cells = notebook.cells[: last + 1]
    return notebook


def _renamed(notebook: Any) -> None:
    """As if the library had renamed a function that the lesson calls."""
    for cell in notebook.cells:
        cell.source = cell.source.replace("dfqlab_kernels.fake_quantize(", "dfqlab_kernels.quantize_like_before(")


def _another_number(notebook: Any) -> None:
    (output,) = notebook.cells[-1].outputs
    assert "1.00" in output.text
    output.text = output.text.replace("1.00", "1.50")


def _as_it_is(notebook: Any) -> None:
    pass


@pytest.fixture(scope="module")
def nbval(beginning: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `make test` says of the lesson, as it is and broken in two ways; one run for all, it starts kernels."""
    folder = tmp_path_factory.mktemp("broken")
    breaks: tuple[Callable[[Any], None], ...] = (_as_it_is, _renamed, _another_number)
    for break_it in breaks:
        notebook = copy.deepcopy(beginning)
        break_it(notebook)
        nbformat.write(notebook, folder / f"{break_it.__name__.strip('_')}.ipynb")
    run = subprocess.run(
        [
            sys.executable, "-m", "pytest", str(folder), "-c", os.devnull, "--rootdir", str(folder), "-rA",
            "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "--color=no",
        ],
        capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}, check=False,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout + run.stderr
    return run.stdout


def _failed(nbval: str, name: str) -> bool:
    lines = [line for line in nbval.splitlines() if f"{name}.ipynb" in line]
    assert any(line.startswith("PASSED") for line in lines), nbval
    return any(line.startswith("FAILED") for line in lines)


def test_the_lesson_as_it_is_passes(nbval: str) -> None:
    assert not _failed(nbval, "as_it_is")


def test_a_renamed_library_function_fails_the_lesson(nbval: str) -> None:
    assert _failed(nbval, "renamed")
    assert "quantize_like_before" in nbval


def test_a_changed_exact_output_fails_the_lesson(nbval: str) -> None:
    assert _failed(nbval, "another_number")


def test_a_stripped_lesson_breaks_the_conventions(whole: Any, tmp_path: Path) -> None:
    stripped = copy.deepcopy(whole)
    for cell in stripped.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    path = tmp_path / LESSON.file
    nbformat.write(stripped, path)
    found = " ".join(problems(path, LESSON, library_names()))
    assert "execution count" in found
    assert "output" in found


def test_one_stripped_output_breaks_the_conventions(whole: Any, tmp_path: Path) -> None:
    stripped = copy.deepcopy(whole)
    cell = next(cell for cell in stripped.cells if EXACT in cell.metadata.get("tags", []))
    cell.outputs = []
    path = tmp_path / LESSON.file
    nbformat.write(stripped, path)
    (problem,) = problems(path, LESSON, library_names())
    assert cell.id in problem

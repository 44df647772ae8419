"""Every exercise stands in its lesson once: a stub that takes what the answer takes, and a check behind it."""

import ast
import inspect
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dfqlab.lab.exercises import EXERCISES

NOTEBOOKS = sorted(Path(__file__).parents[2].joinpath("notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: Path, tag: str | None = None) -> list[Any]:
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    return [cell for cell in cells if tag is None or tag in cell["metadata"].get("tags", [])]


def source_of(cell: Any) -> str:
    return "".join(cell["source"])


def stub_in(cell: Any) -> ast.FunctionDef:
    functions = [node for node in ast.parse(source_of(cell)).body if isinstance(node, ast.FunctionDef)]
    assert len(functions) == 1, f"cell {cell['id']}: expected one stub, got {len(functions)} functions"
    return functions[0]


def exercises_of(notebook: Path) -> list[str]:
    return [f"{notebook.stem[:2]}.{stub_in(cell).name}" for cell in code_cells(notebook, "exercise")]


def test_there_are_lessons_with_exercises() -> None:
    assert {id.split(".")[0] for id in EXERCISES} <= {notebook.stem[:2] for notebook in NOTEBOOKS}


@every_notebook
def test_a_lesson_has_each_of_its_exercises_once(notebook: Path) -> None:
    ours = [id for id in EXERCISES if id.startswith(f"{notebook.stem[:2]}.")]
    assert Counter(exercises_of(notebook)) == Counter(ours)


@every_notebook
def test_a_stub_takes_what_the_answer_takes(notebook: Path) -> None:
    for id, cell in zip(exercises_of(notebook), code_cells(notebook, "exercise"), strict=True):
        arguments = stub_in(cell).args
        assert [arguments.posonlyargs, arguments.kwonlyargs, arguments.vararg, arguments.kwarg] == [[], [], None, None]
        assert [argument.arg for argument in arguments.args] == list(
            inspect.signature(EXERCISES[id].answer).parameters
        ), id


@every_notebook
def test_a_stub_gives_nothing_away(notebook: Path) -> None:
    for cell in code_cells(notebook, "exercise"):
        stub = stub_in(cell)
        body = stub.body[1:] if ast.get_docstring(stub) is not None else stub.body
        assert [ast.unparse(statement) for statement in body] == ["raise NotImplementedError"], cell["id"]
        assert not stub.decorator_list, cell["id"]


@every_notebook
def test_a_check_of_the_exercise_is_the_next_cell_of_code(notebook: Path) -> None:
    cells = code_cells(notebook)
    for index, cell in enumerate(cells):
        if "exercise" not in cell["metadata"].get("tags", []):
            continue
        name = stub_in(cell).name
        following = cells[index + 1]
        assert "check" in following["metadata"].get("tags", []), following["id"]
        assert source_of(following).strip() == f'lab.check("{notebook.stem[:2]}.{name}", {name})', following["id"]


@every_notebook
def test_nothing_is_checked_that_is_no_exercise(notebook: Path) -> None:
    assert len(code_cells(notebook, "check")) >= len(code_cells(notebook, "exercise"))
    checks = [cell for cell in code_cells(notebook) if "lab.check(" in source_of(cell)]
    assert len(checks) == len(exercises_of(notebook))

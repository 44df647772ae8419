"""A lesson that keeps every convention has no problem; each defect alone is found, and named by its cell."""

import ast
import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.figure
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from dfqlab.lab.conventions import BYTES, problems, repeated_definitions
from dfqlab.lab.definitions import library_names
from dfqlab.lessons import Lesson

LESSON = Lesson("01", "integer_grid", "The integer grid", "What is lost?", 10)
LIBRARY = {"fake_quantize": "dfqlab_kernels.fake_quantize"}


def a_picture() -> str:
    figure = matplotlib.figure.Figure((0.2, 0.2))
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return base64.b64encode(file.getvalue()).decode()


PICTURE = a_picture()


def code(name: str, source: str, *tags: str, outputs: tuple[Any, ...] = ()) -> Any:
    return new_code_cell(source, id=f"l01-{name}", metadata={"tags": list(tags)} if tags else {}, outputs=list(outputs))


def said(text: str, name: str = "stdout") -> Any:
    return new_output("stream", name=name, text=text)


def result(text: str, **others: str) -> Any:
    return new_output("display_data", {"text/plain": text, **others})


@pytest.fixture
def lesson() -> Any:
    """A notebook of 25 cells that keeps every convention."""
    picture = new_output(
        "display_data", {"image/png": PICTURE, "text/plain": "a grid"}, metadata={"image/png": {"alt": "Four steps."}}
    )
    cells = [
        new_markdown_cell("# 01 The integer grid\n\nWhat is lost?", id="l01-title"),
        code("start", 'import torch\n\nfrom dfqlab import lab\n\nlab.start("01")', outputs=(said("about 10 s\n"),)),
        code("picture", "lab.show(figure, alt)", outputs=(picture,)),
        code("stub", "def zero_point(low, high):\n    raise NotImplementedError", "exercise"),
        code("check", 'lab.check("01.zero_point", zero_point)', "check", outputs=(result("not yet"),)),
        code("assert", "assert 7 % 4 == 3"),
        code("assert-too", "assert -7 // 4 == -2"),
        code("exact", "2**4", "nbval-check-output", outputs=(new_output("execute_result", {"text/plain": "16"}),)),
        code("explore", "lab.widgets.staircase()", "widget", outputs=(result("Explorer: bits, clip"),)),
        new_markdown_cell("## What this cannot do\n\nSee /docs/ at https://example.org/home/page.", id="l01-limits"),
    ]
    cells += [new_markdown_cell("More.", id=f"l01-more-{i}") for i in range(25 - len(cells) - 1)]
    cells.append(new_markdown_cell("## Sources\n\nA paper.", id="l01-sources"))
    notebook = new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    notebook.nbformat_minor = 5
    return numbered(notebook)


def numbered(notebook: Any) -> Any:
    for count, cell in enumerate([cell for cell in notebook.cells if cell.cell_type == "code"], 1):
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    return notebook


def found(notebook: Any, folder: Path) -> list[str]:
    path = folder / LESSON.file
    path.write_text(nbformat.v4.writes(notebook))
    return problems(path, LESSON, LIBRARY)


def cell_of(notebook: Any, name: str) -> Any:
    return next(cell for cell in notebook.cells if cell.id == f"l01-{name}")


def test_a_lesson_that_keeps_every_convention_has_no_problem(lesson: Any, tmp_path: Path) -> None:
    assert found(lesson, tmp_path) == []


def stripped(notebook: Any) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def in_source(name: str, source: str) -> Callable[[Any], None]:
    return lambda notebook: cell_of(notebook, name).update(source=source)


def in_output(name: str, *outputs: Any) -> Callable[[Any], None]:
    return lambda notebook: cell_of(notebook, name).update(outputs=list(outputs))


def tagged(name: str, *tags: str) -> Callable[[Any], None]:
    return lambda notebook: cell_of(notebook, name).metadata.update(tags=list(tags))


def with_id(name: str, new: str) -> Callable[[Any], None]:
    return lambda notebook: cell_of(notebook, name).update(id=new)


def without(name: str) -> Callable[[Any], None]:
    def change(notebook: Any) -> None:
        notebook.cells.remove(cell_of(notebook, name))
        notebook.cells.insert(1, new_markdown_cell("More.", id="l01-instead"))
        numbered(notebook)

    return change


def renumbered(notebook: Any) -> None:
    cell_of(notebook, "assert").execution_count = 9


def with_cells(number: int) -> Callable[[Any], None]:
    def change(notebook: Any) -> None:
        extra = [new_markdown_cell("More.", id=f"l01-extra-{i}") for i in range(number)]
        notebook.cells[9:9] = extra

    return change


def with_second_stub(notebook: Any) -> None:
    cell_of(notebook, "assert").update(source="def zero_point(x):\n    raise NotImplementedError")
    tagged("assert", "exercise")(notebook)
    tagged("exact", "check")(notebook)


def check_before_exercise(notebook: Any) -> None:
    stub, check = cell_of(notebook, "stub"), cell_of(notebook, "check")
    at = notebook.cells.index(stub)
    notebook.cells[at : at + 2] = [check, stub]
    numbered(notebook)


def nothing_held(notebook: Any) -> None:
    in_source("assert", "7 % 4")(notebook)
    in_source("assert-too", "'assert'")(notebook)


def picture_without_words(notebook: Any) -> None:
    cell_of(notebook, "picture").outputs[0].metadata = nbformat.from_dict({"image/png": {"alt": "  "}})


def live_view(notebook: Any) -> None:
    view = {"version_major": 2, "version_minor": 0, "model_id": "1"}
    cell_of(notebook, "explore").outputs[0].data["application/vnd.jupyter.widget-view+json"] = view


ERROR = new_output("error", ename="ValueError", evalue="no", traceback=["ValueError: no"])

DEFECTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "older format": (lambda n: n.update(nbformat_minor=4), "is nbformat 4.4; expected 4.5"),
    "invalid": (lambda n: n.cells[0].update(cell_type="prose"), "is not a valid notebook"),
    "no id": (lambda n: n.cells[2].pop("id"), "cell number 3 has no id"),
    "same id twice": (with_id("assert", "l01-picture"), "cell l01-picture: 2 cells have this id"),
    "id without words": (with_id("assert", "l01"), "cell l01: expected an id of the form l01-"),
    "id of another lesson": (with_id("assert", "l02-assert"), "cell l02-assert: expected an id of the form l01-"),
    "other kernel": (lambda n: n.metadata.kernelspec.update(name="mine"), "its kernelspec is 'mine'"),
    "widget state": (lambda n: n.metadata.update(widgets={}), "holds the state of widgets"),
    "unknown tag": (tagged("assert", "slow"), "cell l01-assert: unknown tag 'slow'"),
    "raises-exception": (tagged("assert", "raises-exception"), "cell l01-assert: unknown tag 'raises-exception'"),
    "empty exercise": (in_source("stub", "zero_point = None"), "cell l01-stub: an exercise defines no function"),
    "two stubs": (with_second_stub, "cell l01-assert: zero_point is the exercise of cell l01-stub already"),
    "no check": (without("check"), "cell l01-stub: no check follows"),
    "check first": (check_before_exercise, "cell l01-stub: no check follows"),
    "few cells": (lambda n: n.cells.remove(cell_of(n, "more-0")), "has 24 cells; expected 25 to 45"),
    "many cells": (with_cells(21), "has 46 cells; expected 25 to 45"),
    "long cell": (in_source("assert", "assert True\n" * 16), "cell l01-assert: 16 lines of code"),
    "large file": (in_source("more-0", "x" * BYTES), "KB; expected at most 400"),
    "count out of order": (renumbered, "cell l01-assert: execution count 9; expected 5"),
    "never ran": (stripped, "cell l01-start: execution count None; expected 1"),
    "stripped, no outputs": (stripped, "0 cells show an output; expected at least 3"),
    "stripped, no picture": (stripped, "shows no picture"),
    "stripped, check": (stripped, "cell l01-check: tagged check, and shows nothing"),
    "stripped, widget": (stripped, "cell l01-explore: tagged widget, and shows nothing"),
    "stripped, exact": (stripped, "cell l01-exact: tagged nbval-check-output, and shows nothing"),
    "nothing held": (nothing_held, "2 cells hold what they show"),
    "error": (in_output("assert", ERROR), "cell l01-assert: ends in ValueError"),
    "stderr": (in_output("assert", said("a warning", "stderr")), "cell l01-assert: writes to stderr"),
    "SVG": (in_output("assert", result("x", **{"image/svg+xml": "<svg/>"})), "cell l01-assert: shows an SVG"),
    "live view": (live_view, "cell l01-explore: keeps a live view of a widget"),
    "no alt text": (picture_without_words, "cell l01-picture: its picture has no alternative text"),
    "path in prose": (in_source("more-0", "Look into /home/ada/runs."), "cell l01-more-0: names the path /home/ada"),
    "path in code": (in_source("assert", "assert open('C:\\\\runs')"), "cell l01-assert: names the path C:\\\\runs"),
    "path shown": (in_output("assert", said("saved /tmp/m.onnx")), "cell l01-assert: shows the path /tmp/m.onnx"),
    "path in a page": (
        in_output("assert", result("x", **{"text/html": "<img src='/Users/ada/x.png'>"})),
        "cell l01-assert: shows the path /Users/ada/x.png",
    ),
    "address shown": (
        in_output("assert", result("<object at 0x7f3a5c0d1e80>")), "cell l01-assert: shows the address 0x7f3a5c0d1e80",
    ),
    "seconds": (in_output("assert", said("trained in 1.2 s")), "cell l01-assert: shows the timing '1.2 s'"),
    "seconds in words": (in_output("assert", said("3 seconds")), "cell l01-assert: shows the timing '3 seconds'"),
    "milliseconds": (in_output("assert", result("0.31ms")), "cell l01-assert: shows the timing '0.31ms'"),
    "magic": (in_source("assert", "%matplotlib inline\nassert True"), "cell l01-assert: is not plain Python"),
    "shell": (in_source("assert", "!pip install x"), "cell l01-assert: is not plain Python"),
    "sys.path": (in_source("assert", "assert not sys.path.append('..')"), "cell l01-assert: touches sys.path"),
    "star import": (in_source("assert", "from torch import *\nassert 1"), "cell l01-assert: imports * from torch"),
    "first cell, other lesson": (
        in_source("start", 'from dfqlab import lab\n\nlab.start("02")'), "cell l01-start: the first code cell is",
    ),
    "first cell does more": (
        in_source("start", 'x = 1\nfrom dfqlab import lab\nlab.start("01")'), "cell l01-start: the first code cell is",
    ),
    "library name": (
        in_source("assert", "assert 1\nif 1:\n    def fake_quantize(x): return x"),
        "cell l01-assert: defines fake_quantize, which the library has; import it from dfqlab_kernels.fake_quantize",
    ),
    "title": (in_source("title", "# 01 Grids"), "expected a heading, # ... The integer grid"),
    "title no heading": (in_source("title", "The integer grid"), "expected a heading, # ... The integer grid"),
    "sources not last": (in_source("sources", "## Sources\n\n## More"), "its last section is not `## Sources`"),
    "no limits": (in_source("limits", "## What this can do"), "no section says what the method cannot do"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_found(lesson: Any, tmp_path: Path, defect: str) -> None:
    plant, message = DEFECTS[defect]
    plant(lesson)
    messages = found(lesson, tmp_path)
    assert [m for m in messages if message in m], messages
    if plant is not stripped:
        assert len(messages) == 1, messages  # and nothing else is blamed


def test_what_is_no_notebook_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / LESSON.file
    assert problems(path, LESSON, LIBRARY) == [f"{path.name} cannot be read: No such file or directory"]
    path.write_text("not JSON")
    assert "is not a notebook" in problems(path, LESSON, LIBRARY)[0]


@pytest.mark.parametrize(
    "text",
    [
        "W4A4, 97.8 %",
        "4 steps, 3 sets",
        "scale 0.5, 8 bits",
        "3 samples",
        "see https://example.org/tmp/page",
        "a/home/b",
    ],
)
def test_ordinary_words_are_no_path_and_no_timing(lesson: Any, tmp_path: Path, text: str) -> None:
    in_output("assert", said(text))(lesson)
    assert found(lesson, tmp_path) == []


def test_an_exercise_may_have_the_name_of_what_the_library_does(lesson: Any, tmp_path: Path) -> None:
    in_source("stub", "def fake_quantize(x):\n    raise NotImplementedError")(lesson)
    assert found(lesson, tmp_path) == []


def test_a_definition_in_two_lessons_is_found(lesson: Any, tmp_path: Path) -> None:
    in_source("assert", "def half(x):\n    return x / 2")(lesson)
    first, second, third = (tmp_path / name for name in ("01_a.ipynb", "02_b.ipynb", "03_c.ipynb"))
    first.write_text(nbformat.v4.writes(lesson))
    second.write_text(nbformat.v4.writes(lesson))
    in_source("assert", "1")(lesson)
    in_source("stub", "1")(lesson)
    third.write_text(nbformat.v4.writes(lesson))
    assert repeated_definitions([first, third]) == []
    assert repeated_definitions([first, second]) == [
        f"02_b.ipynb and 01_a.ipynb both define {name}; define it once, in the library"
        for name in ("zero_point", "half")
    ]


def test_the_names_of_the_library_are_its_public_definitions() -> None:
    names = library_names()
    assert names["quantize"] == "dfqlab.compression.quantization"  # and not the verb of the command line
    assert names["channel_stats"].startswith("dfqlab_kernels")
    assert not [name for name in names if name.startswith("_")]
    source = Path(__file__).parents[2] / "dfqlab" / "lessons.py"
    own = {n.name for n in ast.parse(source.read_text()).body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    assert {name for name in own if not name.startswith("_")} <= names.keys()

"""A run of a notebook in a kernel of this Python: what is kept of it is the same whenever it is run."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from dfqlab.lab.execution import LessonError, clean, execute, to_bytes


def written(path: Path, *sources: str) -> Path:
    cells = [new_code_cell(source, id=f"l01-{number}") for number, source in enumerate(sources)]
    notebook = new_notebook(cells=[new_markdown_cell("# A lesson", id="l01-title"), *cells])
    notebook.metadata.kernelspec = {"name": "somebody-elses", "display_name": "Elsewhere", "language": "python"}
    path.write_text(nbformat.v4.writes(notebook))
    return path


WIDGET = "import ipywidgets\n\nipywidgets.IntSlider(3, description='bits')"
CHATTER = """import sys, time

for i in range(3):
    print(i, flush=True)
    time.sleep(0.3)
print('w', file=sys.stderr)"""


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "a.ipynb", CHATTER, WIDGET, "6 * 7")
    runs = []
    for _ in range(2):
        executed = execute(path)
        clean(executed.notebook)
        path.write_bytes(to_bytes(executed.notebook))
        runs.append(path.read_bytes())
    assert runs[0] == runs[1]
    assert runs[0].endswith(b"}\n")
    content = json.loads(runs[0])
    _, chatter, widget, product = content["cells"]
    assert [output["text"] for output in chatter["outputs"]] == [["0\n", "1\n", "2\n"], ["w\n"]]
    assert list(widget["outputs"][0]["data"]) == ["text/plain"]
    assert product["outputs"][0]["data"] == {"text/plain": ["42"]}
    assert [cell["execution_count"] for cell in (chatter, widget, product)] == [1, 2, 3]
    assert content["metadata"] == {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
    }


def test_the_kernel_is_this_python_in_the_folder_of_the_notebook_without_the_settings_of_a_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "mine.py").write_text("print = lambda *words: None")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    path = written(tmp_path / "a.ipynb", "import os, sys\n\nprint(sys.executable)\nprint(os.getcwd())")
    (output,) = execute(path).notebook.cells[1].outputs
    assert output.text.splitlines() == [sys.executable, os.path.realpath(tmp_path)]


def test_the_seconds_are_those_that_the_cells_computed(tmp_path: Path) -> None:
    busy = "import time\n\nend = time.process_time() + 1.5\nwhile time.process_time() < end: pass"
    idle = execute(written(tmp_path / "idle.ipynb", "import time\n\ntime.sleep(1.5)")).seconds
    assert 1.0 < execute(written(tmp_path / "busy.ipynb", busy)).seconds - idle < 3.0


def test_an_error_in_a_cell_names_the_cell_and_the_last_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "a.ipynb", "1", "def f():\n    return {}['bits']\nf()", "2")
    with pytest.raises(LessonError) as error:
        execute(path)
    assert str(error.value).startswith("a.ipynb: cell l01-1 raises KeyError\n")
    assert "return {}['bits']" in str(error.value)
    assert "KeyError: 'bits'" in str(error.value)
    assert "\x1b" not in str(error.value)


def test_a_cell_that_does_not_end_is_named(tmp_path: Path) -> None:
    with pytest.raises(LessonError, match=r"a.ipynb: cell l01-1 is not done after 1 s"):
        execute(written(tmp_path / "a.ipynb", "1", "import time\ntime.sleep(60)"), timeout=1)


def test_a_kernel_that_dies_is_said_to_be_dead(tmp_path: Path) -> None:
    with pytest.raises(LessonError, match=r"the kernel died in cell l01-0"):
        execute(written(tmp_path / "a.ipynb", "import os\nos._exit(1)"))


def test_what_is_no_notebook_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text("not JSON")
    with pytest.raises(LessonError, match=r"a.ipynb is not a notebook"):
        execute(tmp_path / "a.ipynb")


def test_cleaning_keeps_tags_pictures_and_their_words_and_nothing_of_an_editor() -> None:
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    picture = new_output("display_data", {"image/png": "iVBORw0K\n"}, metadata={"image/png": {"alt": "A grid."}})
    cell: Any = new_code_cell("1", id="l01-a", outputs=[picture, new_output("display_data", view)])
    cell.metadata.update(tags=["widget"], execution={"iopub.execute_input": "now"}, scrolled=True)
    python = {"name": "python", "version": "3.11.7"}
    notebook = new_notebook(cells=[cell], metadata={"widgets": {"state": {}}, "language_info": python})
    clean(notebook)
    assert cell.metadata == {"tags": ["widget"]}
    assert cell.outputs == [picture]
    assert picture.metadata["image/png"].alt == "A grid."
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert "version" not in notebook.metadata.language_info

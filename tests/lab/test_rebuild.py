"""`make lessons`: notebooks, their times and the README's map are made anew, and only where something changed."""

import json
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from dfqlab.errors import ConfigurationError
from dfqlab.lab import rebuild as module
from dfqlab.lab.execution import LessonError
from dfqlab.lab.rebuild import MAP_BEGINS, MAP_ENDS, kept_seconds, lesson_map, main, rebuild, with_map, with_seconds
from dfqlab.lessons import Lesson, read_lessons

INDEX = """# The lessons.
[[lesson]]
id = "01"
name = "grid"
title = "Grid"
question = "What is lost?"
seconds = 5   # on two cores
needs = []

[[lesson]]
id = "02"
name = "memory"
title = "Memory"
question = "What stays?"
seconds = 60
"""
README = f"# A README\n\n{MAP_BEGINS}\nold\n{MAP_ENDS}\n\nThe rest.\n"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with two tiny lessons; whether they keep the conventions is tested elsewhere."""
    monkeypatch.setattr(module, "problems", lambda path, lesson, library: [])
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "lessons.toml").write_text(INDEX)
    (tmp_path / "README.md").write_text(README)
    for lesson in read_lessons(folder):
        _write(folder / lesson.file, "open('left', 'w').close()\nprint(6 * 7)")
    return tmp_path


def _write(path: Path, source: str) -> None:
    notebook = new_notebook(cells=[new_code_cell(source, id=f"l{path.name[:2]}-only")])
    path.write_text(nbformat.v4.writes(notebook))


def _files(clone: Path) -> dict[str, bytes]:
    return {str(file.relative_to(clone)): file.read_bytes() for file in clone.rglob("*") if file.is_file()}


def test_a_second_run_changes_no_byte_and_nothing_else_is_left_behind(clone: Path, capsys) -> None:
    before = _files(clone)
    assert main([], clone / "notebooks") == 0
    after = _files(clone)
    assert after.keys() == before.keys()
    content = json.loads(after["notebooks/01_grid.ipynb"])
    assert content["cells"][0]["outputs"][0]["text"] == ["42\n"]
    assert f"{MAP_BEGINS}\n{lesson_map(read_lessons(clone / 'notebooks'))}\n{MAP_ENDS}" in (after["README.md"]).decode()
    assert [lesson.seconds for lesson in read_lessons(clone / "notebooks")] == [5, 5]
    capsys.readouterr()
    assert main(["1", "memory"], clone / "notebooks") == 0
    assert _files(clone) == after
    assert capsys.readouterr().out.count("as it was") == 2


def test_a_lesson_that_fails_stays_as_it_was_and_the_others_are_made(clone: Path, capsys) -> None:
    folder = clone / "notebooks"
    _write(folder / "01_grid.ipynb", "1 / 0")
    before = (folder / "01_grid.ipynb").read_bytes()
    assert main([], folder) == 2
    assert "01_grid.ipynb: cell l01-only raises ZeroDivisionError" in capsys.readouterr().err
    assert (folder / "01_grid.ipynb").read_bytes() == before
    assert "42" in (folder / "02_memory.ipynb").read_text()


def test_a_lesson_that_breaks_a_convention_is_not_written(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    before = _files(clone)
    assert main(["01"], clone / "notebooks") == 2
    assert "01_grid.ipynb is left as it was:\n  01_grid.ipynb: has 1 cells" in capsys.readouterr().err
    after = _files(clone)
    assert after.pop("README.md") != before.pop("README.md")  # the map follows lessons.toml all the same
    assert after == before


def test_the_first_cell_shows_the_time_that_is_kept(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = clone / "notebooks"
    lesson = read_lessons(folder)[1]
    _write(folder / lesson.file, f"print(open({str(folder / 'lessons.toml')!r}).read().count('seconds = 5'))")
    rebuild(lesson, folder, {})
    assert json.loads((folder / lesson.file).read_text())["cells"][0]["outputs"][0]["text"] == ["2\n"]


@pytest.mark.parametrize(
    ("kept", "measured", "expected"),
    [
        (30, 30.0, 30), (30, 39.9, 30), (30, 40.1, 40), (30, 19.0, 20), (9, 12.1, 10), (6, 8.9, 6), (5, 0.4, 5),
        (10, 3.0, 5), (60, 2.0, 5), (5, 93.0, 95),
    ],
)  # fmt: skip
def test_a_time_is_kept_unless_it_is_off_by_a_third_and_three_seconds(
    kept: int, measured: float, expected: int
) -> None:
    assert kept_seconds(kept, measured) == expected
    assert kept_seconds(expected, measured) == expected  # twice changes nothing


def test_a_new_time_leaves_the_rest_of_the_text_as_it_is() -> None:
    text = with_seconds(INDEX, "01", 25)
    assert text == INDEX.replace("seconds = 5   # on two cores", "seconds = 25   # on two cores")
    assert with_seconds(text, "01", 5) == INDEX
    with pytest.raises(ConfigurationError, match="under lesson 07"):
        with_seconds(INDEX, "07", 5)


def test_the_map_stands_between_its_markers_and_touches_nothing_else() -> None:
    lesson = Lesson("01", "grid", "Grid", "What is lost?", 10)
    readme = with_map(README, [lesson])
    row = "| [01 Grid](notebooks/01_grid.ipynb) | What is lost? | 10 |"
    assert readme.startswith(f"# A README\n\n{MAP_BEGINS}\n| lesson |")
    assert readme.endswith(f"\n{row}\n{MAP_ENDS}\n\nThe rest.\n")
    assert with_map(readme, [lesson]) == readme


@pytest.mark.parametrize("readme", ["", MAP_BEGINS, MAP_ENDS + MAP_BEGINS, README + README])
def test_a_readme_without_its_markers_is_refused(readme: str) -> None:
    with pytest.raises(ConfigurationError, match="needs a line <!-- lessons"):
        with_map(readme, [])


@pytest.mark.parametrize(
    ("gone", "arguments", "message"),
    [
        ("README.md", [], "rebuilt in a clone"),
        ("notebooks/lessons.toml", [], "cannot read"),
        ("notebooks/02_memory.ipynb", [], "lists lesson 02, but there is no"),
        (None, ["memry"], "did you mean 'memory'?"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(
    clone: Path, gone: str | None, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if gone:
        (clone / gone).unlink()
    before = _files(clone)
    assert main(arguments, clone / "notebooks") == 2
    assert message in capsys.readouterr().err
    assert _files(clone) == before


def test_rebuild_raises_what_main_prints(clone: Path) -> None:
    folder = clone / "notebooks"
    _write(folder / "01_grid.ipynb", "1 / 0")
    with pytest.raises(LessonError, match="ZeroDivisionError"):
        rebuild(read_lessons(folder)[0], folder, {})

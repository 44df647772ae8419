"""The list of lessons, and copies of them: what a learner edited is never overwritten, what they did not is renewed."""

import json
import os
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from dfqlab import lessons as module
from dfqlab.errors import ConfigurationError, OutputError
from dfqlab.lessons import RECORD, LessonCopy, copy_lessons, find_lesson, lessons_folder, read_lessons

ROOT = Path(__file__).parents[1]
GRID = """[[lesson]]
id = "01"
name = "grid"
title = "Grid"
question = "What is lost?"
seconds = 10
"""
MEMORY = GRID.replace("01", "02").replace("grid", "memory") + 'needs = ["deploy"]\n'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two lessons, as a clone or a wheel has them."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "lessons.toml").write_text(GRID + "\n" + MEMORY)
    (folder / "01_grid.ipynb").write_text("the grid")
    (folder / "02_memory.ipynb").write_text("the memory")
    return folder


def states(copies: tuple[LessonCopy, ...]) -> list[str]:
    return [copy.state for copy in copies]


def test_the_clone_comes_before_what_a_wheel_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lessons_folder() == ROOT / "notebooks"
    assert [lesson.id for lesson in read_lessons()] == sorted(lesson.id for lesson in read_lessons())
    installed = tmp_path / "share" / "dfqlab" / "notebooks"
    installed.mkdir(parents=True)
    (installed / "lessons.toml").write_text(GRID)
    (tmp_path / "site-packages" / "notebooks").mkdir(parents=True)  # somebody else's package of that name
    monkeypatch.setattr(module, "__file__", str(tmp_path / "site-packages" / "dfqlab" / "lessons.py"))
    monkeypatch.setattr(sysconfig, "get_path", lambda name, scheme: str(tmp_path))
    assert lessons_folder() == installed
    (installed / "lessons.toml").unlink()
    with pytest.raises(ConfigurationError, match=r"install dfqlab again, or clone its repository"):
        lessons_folder()


def test_a_wheel_is_told_to_bring_the_lessons_where_they_are_looked_for() -> None:
    brought = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    assert brought == {"share/dfqlab/notebooks": ["notebooks/lessons.toml", "notebooks/*.ipynb"]}


def test_a_lesson_has_a_file_and_may_need_extras(source: Path) -> None:
    grid, memory = read_lessons(source)
    assert (grid.file, grid.needs) == ("01_grid.ipynb", ())
    assert (memory.file, memory.needs, memory.seconds) == ("02_memory.ipynb", ("deploy",), 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("lesson = [", "is not TOML"),
        ("", "lists no lesson"),
        ("lesson = 3", "lists no lesson"),
        ("lesson = [3]", "lists no lesson"),
        ("title = 'All'\n" + GRID, "has 'title'; expected [[lesson]] tables only"),
        (GRID + "second = 3\n", "lesson 1 of .* has an unknown key 'second'; did you mean 'seconds'"),
        (GRID.replace('name = "grid"\n', ""), "lesson 1 of .* has no name; a lesson has id, name, title"),
        (GRID + "\n" + GRID.replace('"01"', '"1"'), "lesson 2 of .* has id = '1'; expected two digits"),
        (GRID.replace('"01"', "1"), "has id = 1; expected two digits in quotes"),
        (GRID.replace('"grid"', '"The grid"'), "has name = 'The grid'; expected lower-case words"),
        (GRID.replace('"grid"', '"../grid"'), "expected lower-case words"),
        (GRID.replace('"Grid"', '" "'), "has title = ' '; expected some words"),
        (GRID.replace('"What is lost?"', "[]"), r"has question = \[\]; expected one sentence"),
        (GRID.replace("= 10", "= 0"), "has seconds = 0; expected a whole number above 0"),
        (GRID.replace("= 10", "= true"), "has seconds = True; expected a whole number"),
        (GRID + 'needs = "deploy"', "has needs = 'deploy'; expected a list of extras"),
        (GRID + 'interpreted = "yes"', "has interpreted = 'yes'; expected true or false"),
        (GRID + GRID.replace("grid", "other"), "two lessons with id = '01'"),
        (GRID + GRID.replace("01", "02"), "two lessons with name = 'grid'"),
    ],
)
def test_a_list_that_is_wrong_says_what_and_where(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "lessons.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=message.replace("[[lesson]]", r"\[\[lesson\]\]")):
        read_lessons(tmp_path)


@pytest.mark.parametrize("name", ["02", "2", "memory", "02_memory", "02_memory.ipynb", "Memory", " 02-memory "])
def test_a_lesson_is_found_by_its_number_or_its_name(name: str, source: Path) -> None:
    assert find_lesson(name, read_lessons(source)).id == "02"


@pytest.mark.parametrize(("name", "message"), [("memry", "did you mean 'memory'"), ("77", "known: "), ("", "known: ")])
def test_a_lesson_that_there_is_not_names_those_that_there_are(name: str, message: str, source: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"no lesson '{name}'; {message}"):
        find_lesson(name, read_lessons(source))


def test_copies_are_new_then_unchanged(source: Path, tmp_path: Path) -> None:
    work = tmp_path / "deep" / "work"
    assert states(copy_lessons(work, source)) == ["new", "new"]
    assert sorted(file.name for file in work.iterdir()) == [RECORD, "01_grid.ipynb", "02_memory.ipynb"]
    assert (work / "01_grid.ipynb").read_text() == "the grid"
    assert states(copy_lessons(work, source)) == ["unchanged", "unchanged"]


def test_a_new_version_replaces_what_is_as_it_was_copied(source: Path, tmp_path: Path) -> None:
    copy_lessons(tmp_path / "work", source)
    for version in ("a better grid", "the best grid"):
        (source / "01_grid.ipynb").write_text(version)
        assert states(copy_lessons(tmp_path / "work", source)) == ["updated", "unchanged"]
        assert (tmp_path / "work" / "01_grid.ipynb").read_text() == version


def test_what_was_edited_is_kept_whatever_the_lesson_becomes(source: Path, tmp_path: Path) -> None:
    mine = tmp_path / "work" / "01_grid.ipynb"
    copy_lessons(tmp_path / "work", source)
    mine.write_text("my notes")
    kept = copy_lessons(tmp_path / "work", source)[0]
    assert (kept.state, kept.behind, kept.sentence) == ("kept", False, "01_grid.ipynb: kept, you edited it")
    for version in ("a better grid", "the best grid"):
        (source / "01_grid.ipynb").write_text(version)
        kept = copy_lessons(tmp_path / "work", source)[0]
        assert (kept.state, kept.behind) == ("kept", True)
        assert "has changed since. To get it as it is now, move yours away" in kept.sentence
        assert mine.read_text() == "my notes"
    mine.rename(tmp_path / "work" / "mine.ipynb")
    assert states(copy_lessons(tmp_path / "work", source)) == ["new", "unchanged"]
    assert mine.read_text() == "the best grid"


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.unlink(),
        lambda record: record.write_text(record.read_text()[:-9]),
        lambda record: record.write_bytes(b"\xff\xfe"),
        lambda record: record.write_text("[]"),
        lambda record: record.write_text('{"copied": {"01_grid.ipynb": 3}}'),
        lambda record: record.write_text('{"copied": ["01_grid.ipynb"]}'),
    ],
)
def test_without_a_record_what_differs_counts_as_edited(
    damage: Callable[[Path], object], source: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    copy_lessons(work, source)
    damage(work / RECORD)
    (source / "01_grid.ipynb").write_text("a better grid")
    kept, same = copy_lessons(work, source)
    assert (kept.state, kept.behind, same.state) == ("kept", None, "unchanged")
    assert "may have changed since" in kept.sentence
    assert (work / "01_grid.ipynb").read_text() == "the grid"
    assert json.loads((work / RECORD).read_text())["copied"].keys() == {"02_memory.ipynb"}


def test_a_file_that_was_there_before_is_kept(source: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "01_grid.ipynb").write_text("somebody's")
    assert states(copy_lessons(work, source)) == ["kept", "new"]
    assert (work / "01_grid.ipynb").read_text() == "somebody's"


def test_a_folder_or_a_file_in_the_way_is_said_to_be_there(source: Path, tmp_path: Path) -> None:
    (tmp_path / "work" / "01_grid.ipynb").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"cannot copy a lesson to .*01_grid.ipynb"):
        copy_lessons(tmp_path / "work", source)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another folder"):
        copy_lessons(tmp_path / "file", source)


def test_a_folder_that_cannot_be_written_is_said_to_be_so(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*places: object) -> None:
        raise OSError(28, "No space left on device")

    copy_lessons(tmp_path / "work", source)
    (source / "01_grid.ipynb").write_text("a better grid")
    monkeypatch.setattr(os, "replace", full)  # the rights of a folder would not stop root
    with pytest.raises(OutputError, match="No space left on device"):
        copy_lessons(tmp_path / "work", source)
    assert (tmp_path / "work" / "01_grid.ipynb").read_text() == "the grid"


def test_the_lessons_are_not_copied_onto_themselves(source: Path) -> None:
    with pytest.raises(OutputError, match="where the lessons come from"):
        copy_lessons(source.parent / "." / "notebooks", source)
    assert not (source / RECORD).exists()


def test_a_listed_lesson_without_a_notebook_copies_nothing(source: Path, tmp_path: Path) -> None:
    (source / "02_memory.ipynb").unlink()
    with pytest.raises(ConfigurationError, match=r"lessons.toml lists lesson 02, but .*02_memory.ipynb cannot be read"):
        copy_lessons(tmp_path / "work", source)
    assert not (tmp_path / "work").exists()

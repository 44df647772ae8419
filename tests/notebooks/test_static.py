"""The lessons as they are committed: listed, whole, and keeping the conventions; the README's map of them."""

import re
import tomllib
from pathlib import Path

import pytest

from dfqlab.lab.conventions import problems, repeated_definitions
from dfqlab.lab.definitions import library_names
from dfqlab.lab.rebuild import with_map
from dfqlab.lessons import Lesson, read_lessons

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
LESSONS = read_lessons(FOLDER)


@pytest.fixture(scope="module")
def library() -> dict[str, str]:
    return library_names()


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.file)
def test_a_lesson_keeps_the_conventions(lesson: Lesson, library: dict[str, str]) -> None:
    assert problems(FOLDER / lesson.file, lesson, library) == []


def test_every_notebook_is_a_lesson_of_the_list() -> None:
    assert {file.name for file in FOLDER.glob("*.ipynb")} <= {lesson.file for lesson in LESSONS}


def test_no_two_lessons_define_the_same() -> None:
    assert repeated_definitions(sorted(FOLDER.glob("*.ipynb"))) == []


def test_lessons_stand_in_their_order_and_need_extras_that_there_are() -> None:
    assert [lesson.id for lesson in LESSONS] == sorted(lesson.id for lesson in LESSONS)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for lesson in LESSONS for extra in lesson.needs} <= extras.keys()


def test_the_map_in_the_readme_is_that_of_the_list() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == with_map(readme, LESSONS), "run `make lessons`"


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.file)
def test_the_map_links_to_files_that_there_are(lesson: Lesson) -> None:
    (link,) = re.findall(rf"\]\((notebooks/{lesson.id}_[^)]*)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert (ROOT / link).is_file()

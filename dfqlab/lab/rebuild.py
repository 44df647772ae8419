"""`python -m dfqlab.lab.rebuild [LESSON ...]`: run lessons anew and keep what they show, in a clone of the repository.

The lessons' times in lessons.toml and the map of them in the README follow.
"""

import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dfqlab.checkpoints import write_bytes
from dfqlab.errors import ConfigurationError, DfqlabError
from dfqlab.lab.conventions import problems
from dfqlab.lab.definitions import library_names
from dfqlab.lab.execution import LessonError, clean, execute, to_bytes
from dfqlab.lessons import INDEX, Lesson, find_lesson, lessons_folder, read_lessons

OK, WRONG = 0, 2
MAP_BEGINS = "<!-- lessons, by `make lessons` -->"
MAP_ENDS = "<!-- end of lessons -->"


def main(arguments: Sequence[str], folder: Path | None = None) -> int:
    """Rebuild the lessons named, or all of them. Exit codes: 0 done, 2 a lesson was left as it is, and why is said."""
    failed = False
    try:
        folder = lessons_folder() if folder is None else folder
        readme = folder.parent / "README.md"
        if not readme.is_file():
            raise ConfigurationError(f"lessons are rebuilt in a clone, beside its README.md; {folder.parent} has none")
        lessons = read_lessons(folder)
        chosen = [find_lesson(name, lessons) for name in arguments] or list(lessons)
        for lesson in chosen:
            if not (folder / lesson.file).is_file():
                raise ConfigurationError(f"{INDEX} lists lesson {lesson.id}, but there is no {folder / lesson.file}")
        library = library_names()
        for lesson in chosen:
            try:
                print(rebuild(lesson, folder, library), flush=True)
            except LessonError as error:
                print(error, file=sys.stderr)
                failed = True
        _write_if_new(readme, with_map(readme.read_text(encoding="utf-8"), read_lessons(folder)))
    except DfqlabError as error:
        print(error, file=sys.stderr)
        return WRONG
    return WRONG if failed else OK


def rebuild(lesson: Lesson, folder: Path, library: Mapping[str, str]) -> str:
    """Run one lesson, write its notebook and its time where they changed, and say so in a line.

    Raises:
        LessonError: it does not run to its end, or breaks a convention; then its file stays as it was.
    """
    content, seconds = _run(lesson, folder, library)
    kept = kept_seconds(lesson.seconds, seconds)
    if kept != lesson.seconds:
        index = folder / INDEX
        _write_if_new(index, with_seconds(index.read_text(encoding="utf-8"), lesson.id, kept))
        lesson = replace(lesson, seconds=kept)
        content, seconds = _run(lesson, folder, library)  # once more: its first cell says the time
    written = _write_if_new(folder / lesson.file, content)
    return f"{lesson.file}: {seconds:.0f} CPU seconds, {'written' if written else 'as it was'}"


def kept_seconds(kept: int, measured: float) -> int:
    """The time to keep: another only where it is off by more than a third and by more than 3 s, in steps of 5.

    >>> kept_seconds(30, 38), kept_seconds(30, 43), kept_seconds(5, 1.2)
    (30, 45, 5)
    """
    off = abs(measured - kept)
    return max(5, 5 * round(measured / 5)) if off > kept / 3 and off > 3 else kept


def with_seconds(text: str, lesson_id: str, seconds: int) -> str:
    """The text of lessons.toml with another time for one lesson, and otherwise as it is.

    Raises:
        ConfigurationError: the lesson's table has no line `seconds = ...`.
    """
    tables = re.split(r"(?m)^(?=\[\[lesson\]\])", text)
    for number, table in enumerate(tables):
        if re.search(rf'(?m)^id\s*=\s*["\']{lesson_id}["\']', table):
            tables[number], found = re.subn(r"(?m)^(seconds\s*=\s*)\d+", rf"\g<1>{seconds}", table)
            if found == 1:
                return "".join(tables)
    raise ConfigurationError(f"{INDEX} has no line `seconds = ...` under lesson {lesson_id}; write one")


def lesson_map(lessons: Sequence[Lesson]) -> str:
    """The table of lessons in the README, whose links start at the root of the clone."""
    rows = [
        f"| [{lesson.id} {lesson.title}](notebooks/{lesson.file}) | {lesson.question} | {lesson.seconds} |"
        for lesson in lessons
    ]
    return "\n".join(["| lesson | question | CPU seconds |", "| --- | --- | ---: |", *rows])


def with_map(readme: str, lessons: Sequence[Lesson]) -> str:
    """A README whose map between the two markers is that of these lessons.

    Raises:
        ConfigurationError: the markers are not there once each, in their order.
    """
    before, begins, rest = readme.partition(MAP_BEGINS)
    _, ends, after = rest.partition(MAP_ENDS)
    if not begins or not ends or MAP_BEGINS in rest or MAP_ENDS in before + after:
        raise ConfigurationError(f"the README needs a line {MAP_BEGINS} and after it a line {MAP_ENDS}, once each")
    return f"{before}{begins}\n{lesson_map(lessons)}\n{ends}{after}"


def _run(lesson: Lesson, folder: Path, library: Mapping[str, str]) -> tuple[bytes, float]:
    """The content of a lesson's notebook after a run in a copy of the folder, and the seconds it took."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(shutil.copytree(folder, Path(place, folder.name))) / lesson.file
        executed = execute(copy)
        clean(executed.notebook)
        content = to_bytes(executed.notebook)
        copy.write_bytes(content)
        found = problems(copy, lesson, library)
    if found:
        raise LessonError("\n".join([f"{lesson.file} is left as it was:", *(f"  {message}" for message in found)]))
    return content, executed.seconds


def _write_if_new(path: Path, content: str | bytes) -> bool:
    new = content.encode() if isinstance(content, str) else content
    if path.read_bytes() == new:
        return False
    write_bytes(path, new)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

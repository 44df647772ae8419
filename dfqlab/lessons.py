"""The lessons: which there are, where they lie, and copies of them that a learner may write into."""

import hashlib
import json
import re
import sysconfig
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from dfqlab.checkpoints import write_bytes, write_json
from dfqlab.errors import ConfigurationError, OutputError, did_you_mean

INDEX = "lessons.toml"
RECORD = ".dfqlab-lessons.json"


@dataclass(frozen=True)
class Lesson:
    """One lesson, as lessons.toml has it.

    Attributes:
        id: two digits, its place in the course.
        name: words joined by underscores.
        title: as its first heading says it.
        question: one sentence, which the lesson answers.
        seconds: CPU seconds that running all of it took.
        needs: extras of dfqlab beside `lab`.
        interpreted: whether Triton runs in its interpreter, so that kernels need no GPU.
    """

    id: str
    name: str
    title: str
    question: str
    seconds: int
    needs: tuple[str, ...] = ()
    interpreted: bool = False

    @property
    def file(self) -> str:
        """The name of its notebook."""
        return f"{self.id}_{self.name}.ipynb"


@dataclass(frozen=True)
class LessonCopy:
    """What became of one lesson in a learner's folder.

    Attributes:
        lesson: which.
        path: the copy.
        state: `kept` is a copy that the learner edited; it is never written to.
        behind: whether the lesson has changed since a kept copy was made; None where no record says.
    """

    lesson: Lesson
    path: Path
    state: Literal["new", "updated", "unchanged", "kept"]
    behind: bool | None = False

    @property
    def sentence(self) -> str:
        """What happened, and what to do where the learner may want something else."""
        name = self.path.name
        if self.state == "kept" and self.behind is not False:
            since = "has changed since" if self.behind else "may have changed since"
            return f"{name}: kept, you edited it; the lesson {since}. To get it as it is now, move yours away"
        return {
            "new": f"{name}: copied",
            "updated": f"{name}: replaced by its new version, you had not edited it",
            "unchanged": f"{name}: as the lesson is",
            "kept": f"{name}: kept, you edited it",
        }[self.state]


def lessons_folder() -> Path:
    """Where the lessons lie: in the clone beside the package, else where a wheel puts them.

    Raises:
        ConfigurationError: in neither place.
    """
    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    shared = [Path(sysconfig.get_path("data", scheme), "share", "dfqlab", "notebooks") for scheme in schemes]
    places = [Path(__file__).parents[1] / "notebooks", *shared]
    for place in places:
        if (place / INDEX).is_file():  # another package may have a folder of that name
            return place
    raise ConfigurationError(
        f"no lessons: expected {INDEX} in {' or '.join(str(place) for place in dict.fromkeys(places))}; "
        "install dfqlab again, or clone its repository, whose notebooks/ they are"
    )


def read_lessons(folder: Path | None = None) -> tuple[Lesson, ...]:
    """The lessons that a folder's lessons.toml lists, in its order.

    Raises:
        ConfigurationError: no such file, no TOML, an unknown, missing or ill-typed key, or a lesson listed twice.
    """
    path = (lessons_folder() if folder is None else folder) / INDEX
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    tables = content.pop("lesson", None)
    if content:
        raise ConfigurationError(f"{path} has {', '.join(map(repr, content))}; expected [[lesson]] tables only")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ConfigurationError(f"{path} lists no lesson; expected [[lesson]] tables")
    lessons = tuple(_lesson(table, f"lesson {number} of {path}") for number, table in enumerate(tables, 1))
    for key in ("id", "name"):
        values = [getattr(lesson, key) for lesson in lessons]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ConfigurationError(f"{path} has two lessons with {key} = {twice[0]!r}; it is unique to a lesson")
    return lessons


def find_lesson(name: str, lessons: Sequence[Lesson] | None = None) -> Lesson:
    """The lesson called "01", "1", "integer_grid" or by its file's name.

    Raises:
        ConfigurationError: there is none.

    >>> find_lesson("1").name
    'integer_grid'
    """
    lessons = read_lessons() if lessons is None else lessons
    wanted = name.strip().lower().removesuffix(".ipynb").replace("-", "_")
    for lesson in lessons:
        if wanted in (lesson.id, str(int(lesson.id)), lesson.name, f"{lesson.id}_{lesson.name}"):
            return lesson
    known = [known for lesson in lessons for known in (lesson.id, lesson.name)]
    raise ConfigurationError(f"no lesson {name!r}; {did_you_mean(wanted, known)}")


def copy_lessons(folder: Path, source: Path | None = None) -> tuple[LessonCopy, ...]:
    """Copy every lesson into a learner's folder; replace what is as it was copied, keep what was edited.

    A record in the folder has the SHA-256 of each copy as it was made. Without it (lost, damaged, or a file of the
    learner's own under that name), what differs from the lesson counts as edited.

    Raises:
        ConfigurationError: a lesson that lessons.toml lists has no notebook.
        OutputError: the folder cannot be written, something that is no file is in the way, or it is the lessons' own.
    """
    source = lessons_folder() if source is None else source
    if folder.resolve() == source.resolve():
        raise OutputError(f"{folder} is where the lessons come from; choose another folder for copies to work in")
    originals = {lesson: _notebook(source, lesson) for lesson in read_lessons(source)}
    before = _read_record(folder)
    record, copies = dict(before), []
    for lesson, original in originals.items():
        path = folder / lesson.file
        ours, theirs = _sha256(original), _sha256_of_file(path)
        copied = record.get(lesson.file)
        if theirs == ours:
            copy = LessonCopy(lesson, path, "unchanged")
        elif theirs is None or theirs == copied:
            write_bytes(path, original)
            copy = LessonCopy(lesson, path, "new" if theirs is None else "updated")
        else:
            copy = LessonCopy(lesson, path, "kept", behind=copied != ours if copied else None)
        if copy.state != "kept":
            record[lesson.file] = ours
        copies.append(copy)
    if record != before:
        write_json(folder / RECORD, {"copied": record})
    return tuple(copies)


def _lesson(table: dict[str, Any], where: str) -> Lesson:
    known = {field.name for field in fields(Lesson)}
    for key in table:
        if key not in known:
            raise ConfigurationError(f"{where} has an unknown key {key!r}; {did_you_mean(key, known)}")
    required = [field.name for field in fields(Lesson) if field.default is MISSING]
    missing = [name for name in required if name not in table]
    if missing:
        raise ConfigurationError(f"{where} has no {', '.join(missing)}; a lesson has {', '.join(required)}")
    expected: dict[str, tuple[str, Callable[[Any], object]]] = {
        "id": ("two digits in quotes", lambda v: isinstance(v, str) and re.fullmatch(r"[0-9]{2}", v)),
        "name": ("lower-case words joined by _", lambda v: isinstance(v, str) and re.fullmatch(r"[a-z][a-z0-9_]*", v)),
        "title": ("some words", lambda v: isinstance(v, str) and v.strip()),
        "question": ("one sentence", lambda v: isinstance(v, str) and v.strip() and "\n" not in v),
        "seconds": ("a whole number above 0", lambda v: type(v) is int and v > 0),
        "needs": ("a list of extras", lambda v: isinstance(v, list) and all(isinstance(extra, str) for extra in v)),
        "interpreted": ("true or false", lambda v: isinstance(v, bool)),
    }
    for key, value in table.items():
        what, holds = expected[key]
        if not holds(value):
            raise ConfigurationError(f"{where} has {key} = {value!r}; expected {what}")
    return Lesson(**{**table, "needs": tuple(table.get("needs", ()))})


def _notebook(source: Path, lesson: Lesson) -> bytes:
    try:
        return (source / lesson.file).read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{INDEX} lists lesson {lesson.id}, but {source / lesson.file} cannot be read: {error.strerror or error}"
        ) from error


def _read_record(folder: Path) -> dict[str, str]:
    """SHA-256 by file name; empty where there is no record that can be trusted."""
    try:
        copied = json.loads((folder / RECORD).read_text(encoding="utf-8"))["copied"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if not isinstance(copied, dict) or not all(isinstance(value, str) for value in copied.values()):
        return {}
    return copied


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sha256_of_file(path: Path) -> str | None:
    """None where there is no file; a folder in its place, or a file that cannot be read, is in the way."""
    try:
        return _sha256(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(
            f"cannot copy a lesson to {path}: {error.strerror or error}; move what is there away, "
            "or choose another folder"
        ) from error

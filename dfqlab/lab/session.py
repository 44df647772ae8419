"""The first cell of a lesson: what runs here, and where a name comes from that a cell run too early does not find."""

import json
import os
import re
import symtable
from collections.abc import Iterator
from importlib import metadata
from types import TracebackType
from typing import Any

import torch

from dfqlab.errors import DfqlabError
from dfqlab.lab.interpreter import interpret
from dfqlab.lessons import Lesson, find_lesson, lessons_folder

_THREADS = 4  # the networks of the lessons are small: more threads would wait for each other


def start(lesson: str) -> None:
    """Begin a lesson: set torch's threads and its seed, say what runs here and how long it takes.

    A cell that is run before one that it needs is told which step is missing. Where the lesson asks for it, Triton
    kernels are interpreted from here on.

    Args:
        lesson: its id, such as "01".

    Raises:
        ConfigurationError: no such lesson.
    """
    found = find_lesson(lesson)
    threads = max(1, min(_THREADS, (os.cpu_count() or 1) - 1))  # one core is left for the page
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    _tell_missing_steps(found)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("dfqlab", "torch"))
    print(f"Lesson {found.id}, {found.title}")
    print(f"{versions}; on the CPU with {threads} thread{'s' if threads > 1 else ''}")
    print(f"Running every cell takes about {found.seconds} s of computing.")
    if found.interpreted:
        print(interpret())
    if missing := missing_packages(found):
        extras = ",".join(found.needs)
        print(f'Not installed: {", ".join(missing)}; some cells will fail. To get them: pip install "dfqlab[{extras}]"')


def missing_packages(lesson: Lesson) -> list[str]:
    """What a lesson needs, of the extras that it names, and this Python does not have."""
    missing = []
    for requirement in metadata.requires("dfqlab") or ():
        name = re.match(r"[\w.-]+", requirement)
        if name and any(re.search(rf"extra == ['\"]{extra}['\"]", requirement) for extra in lesson.needs):
            try:
                metadata.version(name.group())
            except metadata.PackageNotFoundError:
                missing.append(name.group())
    return missing


def missing_step(lesson: Lesson, name: str) -> str | None:
    """Which step of a lesson makes `name`, as a sentence; None where none does."""
    for heading, code in _steps(lesson):
        if name in _assigned(code):
            return (
                f"{name!r} is made in the step “{heading}”, which has not run yet, or not to its end. "
                "Run > Run All Above Selected Cell catches up."
            )
    return None


def _tell_missing_steps(lesson: Lesson) -> None:
    try:
        from IPython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    if shell is None:
        return

    def tell(shell: Any, kind: type, error: NameError, trace: TracebackType, tb_offset: int | None = None) -> Any:
        sentence = missing_step(lesson, error.name) if error.name else None
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
        if sentence:
            print(f"A step is missing: {sentence}")

    shell.set_custom_exc((NameError,), tell)


def _steps(lesson: Lesson) -> Iterator[tuple[str, str]]:
    """The code cells of a lesson, each with the heading above it."""
    try:
        cells = json.loads((lessons_folder() / lesson.file).read_text(encoding="utf-8"))["cells"]
    except (DfqlabError, OSError, ValueError, KeyError, TypeError):
        return
    heading = lesson.title
    for cell in cells:
        text = "".join(cell.get("source", ""))
        if cell.get("cell_type") == "code":
            yield heading, text
        else:
            heading = next((line.strip("# ") for line in text.splitlines() if line.startswith("#")), heading)


def _assigned(code: str) -> set[str]:
    """The names that a cell makes for the cells below it; what its functions and comprehensions keep does not count."""
    try:
        symbols = symtable.symtable(code, "<cell>", "exec").get_symbols()
    except (SyntaxError, ValueError):  # a magic, or a null byte
        return set()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}

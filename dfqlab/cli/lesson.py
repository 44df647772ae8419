"""The lessons on a learner's own machine: list them, copy them, open one in JupyterLab. It loads no torch."""

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

from rich.table import Table

from dfqlab.cli import options
from dfqlab.cli.terminal import console
from dfqlab.errors import ConfigurationError, DfqlabError
from dfqlab.lessons import LessonCopy, copy_lessons, find_lesson, read_lessons


def lesson(chosen: options.Lesson, command: str) -> None:
    """Copy the lessons and open one; without one, list them."""
    if not 1 <= chosen.port <= 65535:
        raise ConfigurationError(f"--port {chosen.port}: a port is a number from 1 to 65535")
    folder = Path(chosen.folder)
    if chosen.lesson is None:
        if chosen.copy_only:
            _show(copy_lessons(folder))
        else:
            _list()
        return
    wanted = find_lesson(chosen.lesson)
    if not chosen.copy_only and importlib.util.find_spec("jupyterlab") is None:
        raise DfqlabError(
            'lessons are read and run in JupyterLab, which is not installed; try: pip install "dfqlab[lab]"'
        )
    _show(copy_lessons(folder))
    if not chosen.copy_only:
        _open(folder / wanted.file, chosen.port)


def _list() -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("lesson", "title", "question", "seconds"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    for lesson in read_lessons():
        table.add_row(lesson.id, lesson.title, lesson.question, str(lesson.seconds))
    console.print(table)
    console.print("\nTo open one: dfqlab lesson 01")


def _show(copies: tuple[LessonCopy, ...]) -> None:
    console.print(f"your lessons: {copies[0].path.parent}/", markup=False, soft_wrap=True)
    for copy in copies:
        console.print(f"  {copy.sentence}", markup=False, soft_wrap=True)


def _open(notebook: Path, port: int) -> None:
    """Run JupyterLab on a notebook until it is stopped; where the port is taken, it takes the next free one."""
    arguments = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={notebook.parent.resolve()}"]
    arguments += [f"--LabApp.default_url=/lab/tree/{notebook.name}"]  # and not the file: the URL it prints leads there
    arguments += [f"--ServerApp.port={port}", "--ServerApp.port_retries=50"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--allow-root")  # whoever is root in a container meant it
    console.print(f"opening JupyterLab on {notebook}; Ctrl-C, twice, stops it", markup=False, soft_wrap=True)
    process = subprocess.Popen(arguments)
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # JupyterLab heard it too, asks whether it is meant, and shuts its kernels down
            continue
        break
    if code > 0:
        raise DfqlabError(f"JupyterLab ended with exit code {code}; it was started as: {shlex.join(arguments)}")

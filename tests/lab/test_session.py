"""The first cell: what runs here, and what a cell is told that was run before one that it needs."""

import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from dfqlab.errors import ConfigurationError
from dfqlab.lab import session
from dfqlab.lessons import Lesson, find_lesson

CELLS = [
    ("markdown", "# 07 A lesson\n\nSome words."),
    ("code", "import numpy as np\nfrom dfqlab import lab, load_teacher as load\nimport os.path"),
    ("markdown", "Words.\n\n## The teacher ##\n\nMore words.\n\n### A smaller heading"),
    ("code", "teacher = 1\nwith open('x') as file:\n    first, (second, *rest) = [1, (2, 3)]"),
    ("markdown", "No heading here."),
    ("code", "%matplotlib inline\nunseen = 1"),
    ("code", "def broken(:"),
    ("code", "def distance(a):\n    local = a\n    return [inner for inner in local]\nclass Widget:\n    field = 1"),
    ("markdown", "## The end"),
    ("code", "for index in range(3):\n    late: int = index\nif (walrus := 3):\n    teacher = 2\nannotated: int"),
]
LESSON = Lesson("07", "a_lesson", "A lesson", "Why?", 3)


@pytest.fixture
def lesson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lesson:
    cells = [{"cell_type": kind, "source": text.splitlines(keepends=True)} for kind, text in CELLS]
    (tmp_path / LESSON.file).write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr(session, "lessons_folder", lambda: tmp_path)
    return LESSON


@pytest.fixture
def threads() -> Iterator[None]:
    before, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(before)
    torch.set_rng_state(state)


@pytest.fixture
def shell(lesson: Lesson, threads: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    monkeypatch.setattr(session, "find_lesson", lambda name: lesson)
    shell = InteractiveShell.instance()
    shell.colors = "nocolor"
    shell.reset()
    yield shell
    shell.set_custom_exc((), None)
    shell.reset()


def said(shell: InteractiveShell, code: str) -> tuple[Any, str]:
    with capture_output() as shown:
        result = shell.run_cell(code)
    return result, shown.stdout


@pytest.mark.usefixtures("threads")
def test_start_says_lesson_versions_device_and_seconds_in_three_lines(capsys: pytest.CaptureFixture[str]) -> None:
    session.start("01")
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "Lesson 01, The integer grid"
    threads = r"with (1 thread|[2-4] threads)"
    assert re.fullmatch(rf"dfqlab \d+\.\d+\.\d+, torch \d+\.\d+\.\S+; on the CPU {threads}", second)
    assert third == f"Running every cell takes about {find_lesson('01').seconds} s of computing."


@pytest.mark.usefixtures("threads")
def test_a_lesson_of_kernels_goes_into_the_interpreter_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # comes back afterwards, whatever the lesson makes of it
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert find_lesson("12").interpreted
    session.start("12")
    said = capsys.readouterr().out.splitlines()[-1]
    installed = importlib.util.find_spec("triton") is not None
    assert said.startswith("Triton kernels run in its interpreter" if installed else "Triton is not installed")
    assert (os.environ["TRITON_INTERPRET"] == "1") is installed
    session.start("01")
    assert "Triton" not in capsys.readouterr().out


@pytest.mark.usefixtures("threads")
def test_start_says_the_same_every_time(capsys: pytest.CaptureFixture[str]) -> None:
    session.start("01")
    first = capsys.readouterr().out
    session.start("integer_grid")
    assert capsys.readouterr().out == first
    assert not re.search(r"\d\d:\d\d|\d{4}-\d\d", first)


@pytest.mark.usefixtures("threads")
def test_start_seeds_torch_and_takes_few_threads(capsys: pytest.CaptureFixture[str]) -> None:
    session.start("01")
    drawn = torch.rand(3)
    assert torch.get_num_threads() <= 4
    assert f"{torch.get_num_threads()} thread" in capsys.readouterr().out
    torch.rand(7)
    session.start("01")
    assert torch.equal(torch.rand(3), drawn)


def test_an_unknown_lesson_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no lesson '99'"):
        session.start("99")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("np", "07 A lesson"),
        ("lab", "07 A lesson"),
        ("load", "07 A lesson"),
        ("os", "07 A lesson"),
        ("teacher", "The teacher"),  # where it is made first
        ("file", "The teacher"),
        ("second", "The teacher"),
        ("rest", "The teacher"),
        ("distance", "The teacher"),
        ("Widget", "The teacher"),
        ("index", "The end"),
        ("late", "The end"),
        ("walrus", "The end"),
    ],
)
def test_a_name_is_traced_to_the_first_step_that_makes_it(lesson: Lesson, name: str, step: str) -> None:
    sentence = session.missing_step(lesson, name)
    assert sentence is not None
    assert sentence.startswith(f"{name!r} is made in the step “{step}”")
    assert "Run All Above Selected Cell" in sentence


@pytest.mark.parametrize(
    "name", ["nobody", "load_teacher", "path", "a", "local", "inner", "field", "unseen", "range", ""]
)
def test_a_name_that_no_cell_makes_for_others_is_traced_to_nothing(lesson: Lesson, name: str) -> None:
    assert session.missing_step(lesson, name) is None


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"cells": [{"cell_type": "code"}]}', "\xff"])
def test_a_lesson_that_cannot_be_read_traces_nothing(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / LESSON.file).write_text(content, encoding="latin-1")
    monkeypatch.setattr(session, "lessons_folder", lambda: tmp_path)
    assert session.missing_step(LESSON, "teacher") is None


def test_a_cell_that_misses_a_step_is_told_which(shell: InteractiveShell) -> None:
    said(shell, "from dfqlab.lab import session; session.start('07')")
    result, text = said(shell, "print(teacher)")
    assert isinstance(result.error_in_exec, NameError)
    assert "NameError: name 'teacher' is not defined" in text
    assert text.rstrip().split("\n")[-1].startswith("A step is missing: 'teacher' is made in the step “The teacher”")


def test_a_misspelt_name_is_told_nothing_more(shell: InteractiveShell) -> None:
    said(shell, "from dfqlab.lab import session; session.start('07')")
    result, text = said(shell, "print(teachre)")
    assert isinstance(result.error_in_exec, NameError)
    assert "name 'teachre' is not defined" in text
    assert "A step is missing" not in text


@pytest.mark.parametrize(
    "code",
    ["raise NameError('by hand')", "def f():\n    print(x)\n    x = 1\nf()", "1 / 0", "del teacher, teacher", "x ="],
)
def test_other_errors_read_as_ever(shell: InteractiveShell, code: str) -> None:
    said(shell, "from dfqlab.lab import session; session.start('07'); teacher = 1; x = 2")
    result, text = said(shell, code)
    assert result.success is False
    assert text.count("Traceback") + text.count("SyntaxError") >= 1
    assert "Custom TB Handler failed" not in text
    assert shell.custom_exceptions == (NameError,)


def test_a_cell_that_has_its_steps_is_told_nothing(shell: InteractiveShell) -> None:
    said(shell, "from dfqlab.lab import session; session.start('07')")
    result, text = said(shell, "teacher = 1\nprint(teacher)")
    assert (result.success, text) == (True, "1\n")


def test_start_outside_ipython_only_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], threads: None
) -> None:
    import IPython

    monkeypatch.setattr(IPython, "get_ipython", lambda: None)
    session.start("01")
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_package_that_the_lesson_needs_and_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "onnxruntime":
            raise session.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(session.metadata, "version", version)
    assert session.missing_packages(replace(LESSON, needs=("deploy",))) == ["onnxruntime"]
    assert session.missing_packages(LESSON) == []

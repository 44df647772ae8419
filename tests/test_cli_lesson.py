"""`dfqlab lesson`: a list, copies, and a JupyterLab that opens on one of them."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import pytest

from dfqlab import lessons
from dfqlab.cli import main
from dfqlab.cli.options import VERBS

INDEX = """[[lesson]]
id = "01"
name = "grid"
title = "Grid"
question = "What is lost?"
seconds = 10
"""
NOTEBOOK = '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'


@pytest.fixture
def one_lesson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A course of one lesson, and the folder to copy it into."""
    source = tmp_path / "notebooks"
    source.mkdir()
    (source / "lessons.toml").write_text(INDEX)
    (source / "01_grid.ipynb").write_text(NOTEBOOK)
    monkeypatch.setattr(lessons, "lessons_folder", lambda: source)
    return tmp_path / "work"


@pytest.fixture
def jupyterlab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the place of JupyterLab a program that writes down how it was called, and ends as it is told."""
    fake = tmp_path / "fake" / "jupyterlab"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("")
    (fake / "__main__.py").write_text(
        "import json, os, sys\n"
        "with open(os.environ['FAKE_CALLED'], 'w') as file: json.dump(sys.argv[1:], file)\n"
        "sys.exit(int(os.environ.get('FAKE_ENDS', '0')))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(fake.parent))
    monkeypatch.setenv("FAKE_CALLED", str(tmp_path / "called.json"))
    return tmp_path / "called.json"


def test_without_a_lesson_they_are_listed(one_lesson: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lesson"]) == 0
    assert re.search(r"01 +Grid +What is lost\? +10", capsys.readouterr().out)
    assert not one_lesson.exists()


def test_copy_only_copies_and_opens_nothing(
    one_lesson: Path, jupyterlab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for said in ("01_grid.ipynb: copied", "01_grid.ipynb: as the lesson is"):
        assert main(["lesson", "01", "--folder", str(one_lesson), "--copy_only"]) == 0
        assert said in capsys.readouterr().out
    (one_lesson / "01_grid.ipynb").write_text("mine")
    assert main(["lesson", "--folder", str(one_lesson), "--copy_only"]) == 0  # all of them, without naming one
    assert "kept, you edited it" in capsys.readouterr().out
    assert (one_lesson / "01_grid.ipynb").read_text() == "mine"
    assert not jupyterlab.exists()


@pytest.mark.parametrize("name", ["01", "1", "grid"])
def test_jupyterlab_opens_on_the_copy(name: str, one_lesson: Path, jupyterlab: Path) -> None:
    assert main(["lesson", name, "--folder", str(one_lesson), "--port", "9123"]) == 0
    called = json.loads(jupyterlab.read_text())
    assert called[:3] == [
        f"--ServerApp.root_dir={one_lesson}",
        "--LabApp.default_url=/lab/tree/01_grid.ipynb",
        "--ServerApp.port=9123",
    ]


def test_a_jupyterlab_that_fails_is_said_to_have_failed(
    one_lesson: Path, jupyterlab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_ENDS", "3")
    assert main(["lesson", "01", "--folder", str(one_lesson)]) == 2
    assert "JupyterLab ended with exit code 3" in capsys.readouterr().err


def test_without_jupyterlab_it_says_what_to_install_and_copies_all_the_same(
    one_lesson: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["lesson", "01", "--folder", str(one_lesson)]) == 2
    assert 'pip install "dfqlab[lab]"' in capsys.readouterr().err
    assert main(["lesson", "01", "--folder", str(one_lesson), "--copy_only"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["memory"], "no lesson 'memory'"),
        (["01", "--port", "0"], "a port is a number from 1 to 65535"),
        (["01", "--port", "70000"], "a port is a number from 1 to 65535"),
        (["01", "--folder", "{file}"], "choose another folder"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(
    arguments: list[str], message: str, one_lesson: Path, jupyterlab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = one_lesson.parent / "notebooks" / "lessons.toml"
    assert main(["lesson", *(argument.format(file=file) for argument in arguments)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not jupyterlab.exists()


def test_the_lesson_verb_loads_no_torch_and_nothing_of_jupyter(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom dfqlab.cli import main\n"
        "assert main(['lesson']) == 0\n"
        "heavy = ['torch', 'matplotlib', 'IPython', 'jupyterlab', 'jupyter_server', 'nbformat', 'ipywidgets']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=tmp_path)
    assert said.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_every_switch_is_described_in_its_own_words(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    help_ = " ".join(capsys.readouterr().out.split())
    described = dict(re.findall(r"^ +(\w+): (.+)$", VERBS[verb].__doc__ or "", re.MULTILINE))
    for name in ("overwrite", "copy_only", "lesson"):
        assert (described[name] in help_) if name in described else (f"--{name}" not in help_)


def test_help_names_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "lesson Open a lesson in JupyterLab" in " ".join(capsys.readouterr().out.split())


def test_the_real_jupyterlab_takes_the_next_free_port_and_stops_at_ctrl_c(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom dfqlab import lessons\nfrom dfqlab.cli import main\n"
        f"lessons.lessons_folder = lambda: Path({str(tmp_path / 'notebooks')!r})\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "lessons.toml").write_text(INDEX)
    (tmp_path / "notebooks" / "01_grid.ipynb").write_text(NOTEBOOK)
    # A home of its own, so that no settings and no running server of the user are seen; a browser that opens nothing.
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    environment = {**os.environ, **own, "HOME": str(tmp_path), "BROWSER": "true %s"}
    ours, terminal = os.openpty()  # Ctrl-C in JupyterLab is a matter of terminals
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        arguments = ["lesson", "01", "--folder", str(tmp_path / "work"), "--port", str(port)]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=environment, stdin=terminal, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        overdue = threading.Timer(90, os.killpg, (process.pid, signal.SIGKILL))
        overdue.start()
        try:
            assert process.stdout is not None
            said = _read_until(process.stdout, r"http://(?:localhost|127\.0\.0\.1):\d+/.*token=")
            (address,) = re.findall(r"http://\S+", said.splitlines()[-1])
            listens = int(address.split(":")[2].split("/")[0])
            _knock(listens)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the verb and to JupyterLab
            _read_until(process.stdout, "interrupted")
            os.killpg(process.pid, signal.SIGINT)
            process.communicate()
        finally:
            overdue.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            os.close(terminal)
            os.close(ours)
    assert listens != port
    assert "/lab/tree/01_grid.ipynb" in address
    assert process.returncode == 0


def _read_until(stream: IO[str], pattern: str) -> str:
    said = ""
    for line in stream:
        said += line
        if re.search(pattern, line):
            return said
    pytest.fail(f"ended without {pattern!r}, having said: {said}")


def _knock(port: int) -> None:
    """Somebody opens: JupyterLab says where it listens a moment before it does."""
    for _ in range(100):
        with socket.socket() as visitor:
            if visitor.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(f"nobody listens at port {port}")

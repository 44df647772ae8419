"""Into Triton's interpreter, and what is said where that is not possible."""

import importlib.util
import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from dfqlab.lab import interpreter, launching
from dfqlab.lab.interpreter import can_launch, import_triton, interpret
from dfqlab.lab.launching import first_outside, launch
from dfqlab_kernels.trace import Access, Trace

NOT_INSTALLED = "triton is not installed (it has wheels for Linux only)"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that is not interpreted and has not imported Triton; the variable comes back afterwards."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.delitem(sys.modules, "triton", raising=False)


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for module in (interpreter, launching):
        monkeypatch.setattr(module, "triton_obstacle", lambda device: NOT_INSTALLED)


def test_the_lab_does_not_import_triton_which_a_lesson_may_have_to_interpret() -> None:
    code = "import sys; from dfqlab import lab; lab.widgets.tiles().drawing(); sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_interpret_sets_the_variable_before_triton_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(interpreter, "triton_obstacle", lambda device: "not interpreted")
    assert interpret() == "Triton kernels run in its interpreter, as Python on the CPU: TRITON_INTERPRET=1 is set."
    assert os.environ["TRITON_INTERPRET"] == "1"


def test_interpret_says_that_it_comes_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(interpreter, "triton_obstacle", lambda device: "not interpreted")
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    assert "Restart Kernel" in interpret()
    assert os.environ["TRITON_INTERPRET"] == "0"


@pytest.mark.usefixtures("without_triton")
def test_without_triton_one_plain_sentence_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert interpret().startswith("Triton is not installed (it has wheels for Linux only)")
    assert os.environ["TRITON_INTERPRET"] == "0"
    assert not can_launch()
    assert capsys.readouterr().out == f"No kernel is launched: {NOT_INSTALLED}.\n"


@pytest.mark.usefixtures("without_triton")
def test_without_triton_a_kernel_can_be_written_down_and_launching_it_gives_an_empty_trace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    triton, tl = import_triton()

    @triton.jit
    def copy(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
        tl.store(y_ptr, tl.load(x_ptr))

    y = torch.zeros(3)
    trace = launch(copy, 1, torch.ones(3), y, 3, BLOCK=4)
    assert trace.accesses == []
    assert list(trace.tensors) == ["x", "y"]
    assert torch.equal(y, torch.zeros(3))
    assert capsys.readouterr().out == f"No kernel is launched: {NOT_INSTALLED}.\n"


def test_the_first_access_outside_its_tensor_is_told() -> None:
    x = torch.zeros(4)
    inside = Access((0, 0, 0), "load", "x", (0, 3), 2)
    assert first_outside(Trace({"x": x}, [inside])) == ""
    outside = Access((5, 0, 0), "store", "x", (3, 4), 2)
    sentence = "Program 5 writes x 4, outside the tensor: x has 4 elements, 0 to 3."
    assert first_outside(Trace({"x": x}, [inside, outside])) == sentence
    before = Access((1, 0, 0), "load", "x", (-2, -1), 2)
    assert first_outside(Trace({"x": x}, [before, outside])).startswith("Program 1 reads x -2 to -1, outside")

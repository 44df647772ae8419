"""Who computes: chosen for a while, for good, or by the environment; refused with a way out."""

import subprocess
import sys

import pytest
import torch

import dfqlab
from dfqlab_kernels import BackendError, backend, current_backend, explain_backend
from dfqlab_kernels import backends as module


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_chosen", "auto")


def in_a_process(value: str, code: str) -> subprocess.CompletedProcess[str]:
    environment = {"DFQLAB_BACKEND": value, "PYTHONPATH": ":".join(sys.path)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_a_choice_holds_until_the_next() -> None:
    dfqlab.backend("reference")
    assert current_backend() == "reference"
    backend("auto")
    assert current_backend() == "auto"


def test_a_choice_for_a_while_ends_even_with_an_error() -> None:
    with backend("reference"):
        assert current_backend() == "reference"
        with pytest.raises(ZeroDivisionError), backend("auto"):
            raise ZeroDivisionError(current_backend())
        assert current_backend() == "reference"
    assert current_backend() == "auto"


def test_an_unknown_backend_is_refused_and_changes_nothing() -> None:
    with pytest.raises(BackendError, match=r"no backend 'cuda'; choose one of auto, triton, reference"):
        module._choose("cuda", "backend")
    assert current_backend() == "auto"


def test_the_environment_chooses_at_the_start() -> None:
    result = in_a_process("reference", "import dfqlab_kernels as k; print(k.current_backend(), k.explain_backend())")
    assert result.stdout.startswith("reference reference (plain torch): chosen by"), result.stderr
    refused = in_a_process("fast", "import dfqlab_kernels")
    assert "BackendError: $DFQLAB_BACKEND: no backend 'fast'" in refused.stderr


def test_on_a_cpu_the_definition_runs_and_insisting_on_triton_says_why_it_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.ones(2)
    assert not module.uses_triton(x)
    backend("triton")
    with pytest.raises(BackendError, match=r"TRITON_INTERPRET=1 was not set.*Choose 'auto' or 'reference'"):
        module.uses_triton(x)


def test_without_triton_a_gpu_runs_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TRITON", False)
    assert "not installed" in module.triton_obstacle("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert explain_backend() == "reference (plain torch): triton is not installed (it has wheels for Linux only)"


def test_the_explanation_names_the_missing_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert explain_backend() == "reference (plain torch, which torch.compile fuses): there is no GPU"

"""Which implementation of an op runs: Triton on a GPU, the definition in plain torch everywhere else."""

import importlib.util
import os
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor

from dfqlab_kernels.errors import BackendError

Backend = Literal["auto", "triton", "reference"]
BACKENDS: tuple[Backend, ...] = ("auto", "triton", "reference")
VARIABLE = "DFQLAB_BACKEND"

_TRITON = importlib.util.find_spec("triton") is not None


class backend:
    """Choose who computes: `backend("reference")` from now on, `with backend("reference"):` for a while.

    "auto" takes Triton for tensors on a GPU and the definition elsewhere; "reference" takes the definition everywhere;
    "triton" insists, also on a CPU where TRITON_INTERPRET=1 was set before the start. The environment variable
    DFQLAB_BACKEND chooses at the start of a process.

    Raises:
        BackendError: no such backend.

    >>> with backend("reference"):
    ...     current_backend()
    'reference'
    """

    def __init__(self, name: Backend) -> None:
        self._before = current_backend()
        _choose(name, "backend")

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _choose(self._before, "backend")


def current_backend() -> Backend:
    """The backend that was chosen, "auto" where nobody chose."""
    return _chosen


def uses_triton(x: Tensor) -> bool:
    """Whether an op on this tensor runs a Triton kernel.

    Raises:
        BackendError: Triton is insisted on and cannot run here.
    """
    if _chosen == "reference" or not (x.is_cuda or _chosen == "triton"):
        return False
    obstacle = triton_obstacle(x.device.type)
    if obstacle and _chosen == "triton":
        raise BackendError(f"backend 'triton': {obstacle}. Choose 'auto' or 'reference'.")
    return not obstacle


def triton_obstacle(device_type: str) -> str:
    """Why Triton cannot run for tensors of this device, or ""."""
    if not _TRITON:
        return "triton is not installed (it has wheels for Linux only)"
    if device_type != "cuda" and not _interpreted():
        return f"the tensors are on {device_type}, and TRITON_INTERPRET=1 was not set before the start"
    return ""


def explain_backend() -> str:
    """Which implementation is in use on this machine, and why: one sentence."""
    if _chosen == "reference":
        return f"reference (plain torch): chosen by dfqlab.backend() or {VARIABLE}"
    if _chosen == "auto" and not torch.cuda.is_available():
        return "reference (plain torch, which torch.compile fuses): there is no GPU"
    obstacle = triton_obstacle("cuda" if torch.cuda.is_available() else "cpu")
    if obstacle and _chosen == "triton":
        return f"none: Triton is insisted on, and {obstacle}"
    if obstacle:
        return f"reference (plain torch): {obstacle}"
    return "Triton, interpreted" if _interpreted() else "Triton kernels, for tensors on a GPU"


def _interpreted() -> bool:
    """Read when it is asked for: a lesson sets the variable after this module is imported, and before Triton is."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")


def _choose(name: str, source: str) -> None:
    global _chosen
    for known in BACKENDS:
        if name == known:
            _chosen = known
            return
    raise BackendError(f"{source}: no backend {name!r}; choose one of {', '.join(BACKENDS)}")


_chosen: Backend = "auto"
_choose(os.environ.get(VARIABLE) or "auto", f"${VARIABLE}")

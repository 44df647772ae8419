"""Triton's interpreter in this process: entering it, and watching what its kernels load and store."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from dfqlab.errors import ConfigurationError
from dfqlab_kernels import trace
from dfqlab_kernels.backends import triton_obstacle
from dfqlab_kernels.trace import See

VARIABLE = "TRITON_INTERPRET"

_REFUSED = ("create_atomic_rmw", "create_atomic_cas")


def interpret() -> str:
    """Put this process into Triton's interpreter, before Triton is imported; returns a sentence on what came of it."""
    if importlib.util.find_spec("triton") is None:
        return f"{_first_up(triton_obstacle('cpu'))}: a cell that launches a kernel says so, every other works."
    if triton_obstacle("cpu") and "triton" in sys.modules:
        return (
            "Triton was imported before this cell, to compile. To interpret: Kernel > Restart Kernel, then this cell."
        )
    os.environ[VARIABLE] = "1"
    return f"Triton kernels run in its interpreter, as Python on the CPU: {VARIABLE}=1 is set."


def can_launch() -> bool:
    """Whether kernels can be launched here; if not, print why."""
    obstacle = triton_obstacle("cpu")
    if obstacle:
        print(no_launch(obstacle))
    return not obstacle


def no_launch(obstacle: str) -> str:
    """What a cell says that would launch a kernel and cannot."""
    return f"No kernel is launched: {obstacle}."


def import_triton() -> tuple[Any, Any]:
    """`triton` and `triton.language`; where they cannot run, stand-ins with which kernels can be written down."""
    if triton_obstacle("cpu"):
        return SimpleNamespace(jit=lambda kernel: kernel), SimpleNamespace(constexpr=int)
    import triton
    import triton.language

    return triton, triton.language


@contextmanager
def watched(see: See) -> Iterator[None]:
    """`dfqlab_kernels.trace.watched`, in which atomics, which would go around it, raise."""
    from triton.runtime import interpreter

    def refuse(*_: Any) -> Any:
        raise ConfigurationError("the lessons watch loads and stores, not atomics; let each program store its own part")

    builder: Any = interpreter.interpreter_builder
    with trace.watched(see):
        vars(builder).update(dict.fromkeys(_REFUSED, refuse))
        try:
            yield
        finally:
            for name in _REFUSED:
                vars(builder).pop(name, None)


def unwatch() -> None:
    """Take away what a watch left that was stopped while it tidied up."""
    from triton.runtime import interpreter

    for name in (*trace.WATCHED, *_REFUSED):
        vars(interpreter.interpreter_builder).pop(name, None)


def _first_up(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]

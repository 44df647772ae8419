"""Triton's interpreter in this process: entering it, and watching what its kernels load and store."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np

from dfqlab.errors import ConfigurationError
from dfqlab_kernels.backends import triton_obstacle
from dfqlab_kernels.trace import Direction

VARIABLE = "TRITON_INTERPRET"

See: TypeAlias = Callable[[Direction, np.ndarray, np.ndarray, int], np.ndarray]
"""Takes a direction, the address of each lane, whether its mask shows it, and bytes an element; returns who passes."""

_PATCHED = ("create_masked_load", "create_masked_store", "create_atomic_rmw", "create_atomic_cas")


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
    """Show `see` every load and store of interpreted kernels, before it happens; lanes that it drops do nothing.

    Atomics, which would go around it, raise.
    """
    from triton.runtime import interpreter

    builder: Any = interpreter.interpreter_builder
    before = {name: vars(builder)[name] for name in _PATCHED if name in vars(builder)}
    load, store = builder.create_masked_load, builder.create_masked_store

    def allowed(direction: Direction, pointers: Any, mask: Any) -> Any:
        bytes_each = pointers.get_element_ty().primitive_bitwidth // 8
        shown = np.broadcast_to(mask.data, pointers.data.shape)
        return interpreter.TensorHandle(see(direction, pointers.data, shown, bytes_each), mask.dtype)

    def watched_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        return load(pointers, allowed("load", pointers, mask), *rest)

    def watched_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        return store(pointers, value, allowed("store", pointers, mask), *rest)

    def refuse(*_: Any) -> Any:
        raise ConfigurationError("the lessons watch loads and stores, not atomics; let each program store its own part")

    vars(builder).update(dict(zip(_PATCHED, (watched_load, watched_store, refuse, refuse), strict=True)))
    try:
        yield
    finally:
        for name in _PATCHED:
            vars(builder).pop(name, None)
        vars(builder).update(before)


def unwatch() -> None:
    """Take away what a watch left that was stopped while it tidied up."""
    from triton.runtime import interpreter

    for name in _PATCHED:
        vars(interpreter.interpreter_builder).pop(name, None)


def _first_up(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]

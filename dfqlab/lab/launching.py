"""Launching a learner's kernel: interpreted, every access on record, and none let through to memory of others."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfqlab.lab.interpreter import no_launch, unwatch, watched
from dfqlab_kernels.backends import triton_obstacle
from dfqlab_kernels.trace import Direction, See, Trace, traced

_BAND = 1024  # elements of nobody's on each side of a tensor: an access just past its end lands there
_VERBS = {"load": "reads", "store": "writes"}


@dataclass(frozen=True)
class Watched:
    """What a launch did.

    Attributes:
        trace: every access to the tensors, which stand in it under the names of the kernel's parameters, less `_ptr`.
        far: the first access so far from every tensor that it was not let through, as a sentence; "" if none was.
    """

    trace: Trace
    far: str = ""

    @property
    def outside(self) -> str:
        """The first access outside its tensor, as a sentence; "" if there is none."""
        return first_outside(self.trace) or self.far


def launch(kernel: Any, programs: int, *arguments: Any, **named: Any) -> Trace:
    """`kernel[(programs,)](*arguments, **named)`, watched: which program loads and stores which elements.

    A kernel that reaches past the end of a tensor does no harm here: what lies there is nobody's. Where Triton cannot
    run, and for a kernel that is still to be written, says so and returns a trace without accesses.

    Args:
        kernel: a function in Triton's language, with or without `@triton.jit`.
        programs: how many to start, one after the other.
        arguments, named: what the kernel takes; tensors are contiguous or channels_last, and on the CPU.
    """
    tensors = _tensors(kernel, arguments, named)
    obstacle = triton_obstacle("cpu")
    if obstacle:
        print(no_launch(obstacle))
        return Trace(tensors)
    try:
        done = launch_watched(kernel, programs, *arguments, **named)
    except NotImplementedError as error:
        if str(error):
            raise
        print(f"Not yet: {_function(kernel).__name__} is still to be written.")
        return Trace(tensors)
    if done.far:
        print(done.far)
    return done.trace


def launch_watched(kernel: Any, programs: int, *arguments: Any, **named: Any) -> Watched:
    """Launch a kernel between guard bands; what it raises is raised as itself.

    Raises:
        BackendError: Triton does not run in its interpreter here.
    """
    function = _function(kernel)
    given = inspect.signature(function).bind(*arguments, **named).arguments
    owned = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    banded = {name: _between_bands(value) for name, value in owned.items()}
    far: list[str] = []
    import triton
    from triton.runtime.errors import InterpreterError

    unwatch()
    shown = {_short(name): tensor for name, tensor in banded.items()}
    with traced(**shown) as trace, watched(_near(banded.values(), far)):
        try:
            triton.jit(function)[(programs,)](**{**given, **banded})
        except InterpreterError as error:
            raise _cause(error) from None
    for name, value in owned.items():
        if trace.of(_short(name), "store"):
            value.detach().copy_(banded[name])
    return Watched(trace, far[0] if far else "")


def first_outside(trace: Trace) -> str:
    """The first access of a trace to elements that its tensor does not have, as a sentence; "" if there is none."""
    for access in trace.accesses:
        count = trace.tensors[access.tensor].numel()
        strays = sorted({element for element in access.elements if not 0 <= element < count})
        if strays:
            which = str(strays[0]) if len(strays) == 1 else f"{strays[0]} to {strays[-1]}"
            return (
                f"Program {access.program[0]} {_VERBS[access.direction]} {access.tensor} {which}, outside the tensor: "
                f"{access.tensor} has {count} elements, 0 to {count - 1}."
            )
    return ""


def _function(kernel: Any) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(kernel, "fn", kernel)
    return function


def _short(name: str) -> str:
    return name.removesuffix("_ptr")


def _tensors(kernel: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Tensor]:
    given = inspect.signature(_function(kernel)).bind(*arguments, **named).arguments
    return {_short(name): value for name, value in given.items() if isinstance(value, Tensor)}


def _between_bands(x: Tensor) -> Tensor:
    """A copy laid out as x, in the middle of memory that is nobody's: NaN, where there is one."""
    span = x.numel()
    nobodys = float("nan") if x.is_floating_point() else 0
    memory = torch.full((span + 2 * _BAND,), nobodys, dtype=x.dtype)
    return memory.as_strided(x.shape, x.stride(), _BAND).copy_(x.detach())


def _near(tensors: Iterable[Tensor], far: list[str]) -> See:
    """Lets through what stays in the memory of these tensors and the bands around it; the rest is told in `far`."""
    from triton.runtime import interpreter

    ranges = []
    for tensor in tensors:
        begin = tensor.untyped_storage().data_ptr()
        ranges.append((begin, begin + tensor.untyped_storage().nbytes()))

    def see(direction: Direction, addresses: np.ndarray, shown: np.ndarray, bytes_each: int) -> np.ndarray:
        near = np.zeros_like(shown)
        for begin, end in ranges:
            near |= (addresses >= begin) & (addresses + bytes_each <= end)
        if (shown & ~near).any():
            program = interpreter.interpreter_builder.grid_idx[0]
            lanes = int((shown & ~near).sum())
            what = f"{lanes} element{'s' if lanes > 1 else ''}"
            far.append(f"Program {program} {_VERBS[direction]} {what} far from every tensor; nothing was let through.")
        return np.asarray(shown & near)

    return see


def _cause(error: BaseException) -> BaseException:
    """What was raised inside a kernel, out of the interpreter's wrapping."""
    from triton.runtime.errors import InterpreterError

    while isinstance(error, InterpreterError) and error.__cause__ is not None:
        error = error.__cause__
    return error

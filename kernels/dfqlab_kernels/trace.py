"""What an interpreted Triton kernel reads and writes, element by element: what a byte costs is counted, not guessed."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from torch import Tensor

from dfqlab_kernels.backends import triton_obstacle
from dfqlab_kernels.errors import BackendError

Direction = Literal["load", "store"]
WATCHED = ("create_masked_load", "create_masked_store")
"""What the interpreter calls for every load and store, masked or not."""

See: TypeAlias = Callable[[Direction, np.ndarray, np.ndarray, int], np.ndarray]
"""Takes a direction, the address of each lane, whether its mask shows it, and bytes an element; returns who passes."""


@dataclass(frozen=True)
class Access:
    """One load or store of one program.

    Attributes:
        program: its ids (x, y, z).
        direction: "load" or "store".
        tensor: the name under which the tensor is watched.
        elements: indices into its memory of those that the mask let through, in the order of the tile.
        lanes: how many elements the tile has, masked ones included.
    """

    program: tuple[int, int, int]
    direction: Direction
    tensor: str
    elements: tuple[int, ...]
    lanes: int


@dataclass
class Trace:
    """All accesses to watched tensors, in order."""

    tensors: dict[str, Tensor]
    accesses: list[Access] = field(default_factory=list)

    def of(self, tensor: str, direction: Direction) -> Counter[int]:
        """How often each element (an index into the tensor's memory) was loaded or stored."""
        return Counter(e for a in self.accesses if (a.tensor, a.direction) == (tensor, direction) for e in a.elements)

    def bytes(self, tensor: str | None = None, direction: Direction | None = None) -> int:
        """Bytes that kernels moved, of all watched tensors or one, both ways or one."""
        return sum(
            len(a.elements) * self.tensors[a.tensor].element_size()
            for a in self.accesses
            if tensor in (None, a.tensor) and direction in (None, a.direction)
        )


@contextmanager
def traced(**tensors: Tensor) -> Iterator[Trace]:
    """Watch tensors while interpreted kernels run: `with traced(x=x, y=y) as trace:`.

    Raises:
        BackendError: Triton does not run in its interpreter here.
    """
    obstacle = triton_obstacle("cpu")
    if obstacle:
        raise BackendError(f"traced: {obstacle}")
    from triton.runtime import interpreter

    grid: Any = interpreter.interpreter_builder
    trace = Trace(tensors)

    def record(direction: Direction, pointers: np.ndarray, mask: np.ndarray, _: int) -> np.ndarray:
        addresses, shown = np.atleast_1d(pointers).ravel(), np.atleast_1d(mask).ravel()
        for name, tensor in tensors.items():
            begin, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
            within = shown & (addresses >= begin) & (addresses < begin + size)
            if within.any():
                elements = (addresses[within] - tensor.data_ptr()).astype(np.int64) // tensor.element_size()
                program = (int(grid.grid_idx[0]), int(grid.grid_idx[1]), int(grid.grid_idx[2]))
                trace.accesses.append(Access(program, direction, name, tuple(elements.tolist()), len(addresses)))
        return mask

    with watched(record):
        yield trace


@contextmanager
def watched(see: See) -> Iterator[None]:
    """Show `see` every load and store of interpreted kernels, before it happens; lanes that it drops do nothing."""
    from triton.runtime import interpreter

    builder: Any = interpreter.interpreter_builder
    before = {name: vars(builder)[name] for name in WATCHED if name in vars(builder)}
    load, store = builder.create_masked_load, builder.create_masked_store

    def allowed(direction: Direction, pointers: Any, mask: Any) -> Any:
        bytes_each = pointers.get_element_ty().primitive_bitwidth // 8
        shown = np.broadcast_to(mask.data, pointers.data.shape)
        return interpreter.TensorHandle(see(direction, pointers.data, shown, bytes_each), mask.dtype)

    def watched_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        return load(pointers, allowed("load", pointers, mask), *rest)

    def watched_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        return store(pointers, value, allowed("store", pointers, mask), *rest)

    vars(builder).update(zip(WATCHED, (watched_load, watched_store), strict=True))
    try:
        yield
    finally:
        for name in WATCHED:
            vars(builder).pop(name, None)
        vars(builder).update(before)

"""A score before any clock: the bytes that a computation reads and writes, operation by operation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dfqlab.lab.interpreter import watched
from dfqlab_kernels.backends import triton_obstacle
from dfqlab_kernels.trace import Direction

_RESERVING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_", "_unsafe_view"}
_FILLING = {"zeros", "ones", "full", "scalar_tensor", "zeros_like", "ones_like", "full_like", "fill_", "zero_"}
_MOVING = {*_FILLING, "clone", "copy_", "_to_copy", "where"}
_KERNEL = "a Triton kernel"


@dataclass(frozen=True)
class Operation:
    """One operation: its name, the bytes that it reads and writes, and its arithmetic.

    `flops` counts one for each element, of the larger of what comes and goes, and for a matrix product or a convolution
    what torch's own counter counts; 0 for a Triton kernel, whose arithmetic is not watched.
    """

    name: str
    read: int
    written: int
    flops: int = 0


@dataclass(frozen=True)
class Traffic:
    """What operations read and wrote, in order."""

    operations: tuple[Operation, ...]

    @property
    def read(self) -> int:
        """Bytes read."""
        return sum(operation.read for operation in self.operations)

    @property
    def written(self) -> int:
        """Bytes written."""
        return sum(operation.written for operation in self.operations)

    @property
    def bytes(self) -> int:
        """Bytes moved, both ways."""
        return self.read + self.written

    @property
    def flops(self) -> int:
        """Arithmetic of all operations."""
        return sum(operation.flops for operation in self.operations)

    def per(self, x: Tensor) -> float:
        """Bytes moved in units of B, the bytes of x."""
        return self.bytes / bytes_of(x)


def bytes_of(x: Tensor) -> int:
    """Bytes of the elements that a tensor has in memory: an expanded one has few."""
    return prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride) * x.element_size()


def forward_traffic(function: Callable[..., Any], *inputs: Tensor) -> Traffic:
    """Bytes that a function of tensors moves where each operation reads its inputs and writes its outputs.

    That is what eager torch does, if nothing stays in a cache between two operations. A view moves nothing, and an
    interpreted Triton kernel what it loads and stores.

    >>> x = torch.zeros(1000)
    >>> forward_traffic(lambda x: torch.relu(2 * x), x).per(x)
    4.0
    """
    with _counting() as count:
        function(*inputs)
    return count.traffic


def backward_traffic(function: Callable[..., Any], *inputs: Tensor) -> Traffic:
    """Bytes that the gradient of a function moves, from its outputs' gradients to those of its inputs.

    Args:
        function: of tensors, differentiable; returns a tensor, or several.
        inputs: the gradient goes to all that are of a floating type.
    """
    leaves = [x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs]
    outputs = [y for y in tree_leaves(function(*leaves)) if isinstance(y, Tensor) and y.requires_grad]
    seeds = [torch.ones_like(y) for y in outputs]
    wanted = [x for x in leaves if x.requires_grad]
    with _counting() as count:
        torch.autograd.grad(outputs, wanted, seeds, allow_unused=True)
    return count.traffic


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self.moved: dict[Direction, int] = {"load": 0, "store": 0}  # by kernels, and not told yet

    @property
    def traffic(self) -> Traffic:
        return Traffic(tuple(self.operations))

    def see(self, direction: Direction, addresses: np.ndarray, shown: np.ndarray, bytes_each: int) -> np.ndarray:
        self.moved[direction] += int(shown.sum()) * bytes_each
        return shown

    def tell_kernels(self) -> bool:
        """Whether kernels moved anything since this was asked last."""
        told = any(self.moved.values())
        if told:
            self.operations.append(Operation(_KERNEL, self.moved["load"], self.moved["store"]))
            self.moved = {"load": 0, "store": 0}
        return told

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.tell_kernels()
        result = func(*args, **kwargs)
        name = func._overloadpacket.__name__
        onto_itself = name == "copy_" and args[0].data_ptr() == args[1].data_ptr()  # as the interpreter does
        if not (self.tell_kernels() or name in _RESERVING or _is_view(func) or onto_itself):
            read, written = _tensors((args, kwargs)), _tensors(result)
            if name in _FILLING:
                read = []
            elif name == "copy_":
                read = read[1:]  # the first is only written to
            flops = _flops(func, name, args, kwargs, result, [*read, *written])
            self.operations.append(Operation(name, sum(map(bytes_of, read)), sum(map(bytes_of, written)), flops))
        return result


@contextmanager
def _counting() -> Iterator[_Count]:
    count = _Count()
    if triton_obstacle("cpu"):
        with count:
            yield count
    else:
        with count, watched(count.see):
            yield count
    count.tell_kernels()


def _tensors(values: Any) -> list[Tensor]:
    """Each tensor once."""
    return list({id(leaf): leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}.values())


def _is_view(func: Any) -> bool:
    aliases = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _flops(func: Any, name: str, args: Any, kwargs: Any, result: Any, tensors: Sequence[Tensor]) -> int:
    from torch.utils.flop_counter import flop_registry  # imports Triton, which a lesson may have to interpret

    counter = flop_registry.get(func._overloadpacket)
    if counter is not None:
        return int(counter(*args, **kwargs, out_val=result))
    return 0 if name in _MOVING else max((x.numel() for x in tensors), default=0)

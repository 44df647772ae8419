"""How many bytes a computation moves, counted operator by operator: every tensor read and written once by each."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class ByteCounter(TorchDispatchMode):
    """Counts inputs and outputs of every operator inside `with ByteCounter() as counter:`; a view moves nothing.

    >>> import torch
    >>> x = torch.ones(256)
    >>> with ByteCounter() as counter:
    ...     y = (x + 1).relu_().view(16, 16)
    >>> counter.bytes  # reads x, writes a sum, reads and writes that
    4096
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read, written = list(_tensors([args, kwargs])), list(_tensors(result))
        places = {tensor.untyped_storage().data_ptr() for tensor in read}
        is_view = not func._schema.is_mutable and any(t.untyped_storage().data_ptr() in places for t in written)
        if not is_view:
            self.bytes += sum(map(_extent, read)) + sum(map(_extent, written))
        return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.numel())


def _extent(tensor: Tensor) -> int:
    """Bytes of a tensor, those that an expanded one repeats counted once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())

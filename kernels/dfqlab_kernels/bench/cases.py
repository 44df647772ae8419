"""What is measured: a case is an op on given tensors, with everything that competes with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Direction = Literal["forward", "both"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "both")
OURS = "ours"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Call:
    """A function, the leaves that it differentiates for, and the gradients of its results.

    Attributes:
        function: returns a tensor, or several.
        inputs: require gradients.
        upstream: one for each result.
        constants: given behind the inputs; no gradient reaches them.
    """

    function: Callable[..., Any]
    inputs: Sequence[Tensor]
    upstream: Sequence[Tensor]
    constants: Sequence[Any] = ()

    def forward(self) -> Any:
        """The results, with all that a backward pass needs kept."""
        return self.function(*self.inputs, *self.constants)

    def both(self) -> tuple[Tensor, ...]:
        """Forward and backward; returns the gradients."""
        outputs = self.forward()
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        return torch.autograd.grad(outputs, self.inputs, self.upstream)

    def compiled(self) -> "Call":
        """The same through torch.compile."""
        function = torch.compile(self.function, dynamic=False)
        return Call(function, self.inputs, self.upstream, self.constants)


@dataclass(frozen=True)
class Case:
    """One line of a table.

    Attributes:
        label: what is done to what.
        dtype: of the tensors.
        layout: "NCHW", "NHWC" (channels_last), or "" where it does not matter.
        elements: of x, or of all of them.
        floor: the fewest bytes that forward, and forward and backward, can move.
        operations: arithmetic for each element, forward, and forward and backward: counted by hand in the definition.
        build: makes the calls by competitor, on a device; "ours" is one of them.
        reads_only: forward writes nothing worth mentioning, so the read rate is its limit.
        small: launches decide: wall clock and CUDA graph are measured as well.
    """

    label: str
    dtype: str
    layout: str
    elements: int
    floor: tuple[int, int]
    operations: tuple[int, int]
    build: Callable[[str], dict[str, Call]]
    reads_only: bool = False
    small: bool = False


@dataclass(frozen=True)
class Bench:
    """The cases of one name on the command line.

    Attributes:
        ops: public ops that its "ours" runs through.
        cases: those for a GPU (True) or a CPU (False).
    """

    ops: tuple[str, ...]
    cases: Callable[[bool], list[Case]]


def random(shape: Sequence[int], dtype: str, layout: str, device: str, seed: int) -> Tensor:
    """N(0.5, 2), the same for every competitor."""
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(tuple(shape), generator=generator, device=device).mul_(2).add_(0.5).to(DTYPES[dtype])
    return x.to(memory_format=torch.channels_last) if layout == "NHWC" else x


def leaf(shape: Sequence[int], dtype: str, layout: str, device: str, seed: int = 0) -> Tensor:
    """The same, to be differentiated for."""
    return random(shape, dtype, layout, device, seed).requires_grad_()


def activations(mebibytes: int, dtype: str) -> tuple[int, int, int, int]:
    """A shape (n, 64, 32, 32) of so many MiB.

    >>> activations(64, "bfloat16")
    (512, 64, 32, 32)
    """
    return (mebibytes << 20) // (DTYPES[dtype].itemsize << 16), 64, 32, 32


def layouts_and_dtypes() -> list[tuple[str, str]]:
    """Every layout with every dtype."""
    return [(layout, dtype) for dtype in DTYPES for layout in ("NCHW", "NHWC")]

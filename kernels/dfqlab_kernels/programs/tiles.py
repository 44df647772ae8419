"""What every program shares: where its tile lies, and how a number becomes an integer."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfqlab_kernels.layout import Layout, Tiling

LAUNCH: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}
"""One rounding for each operation, as in the definition: a fused multiply-add has one for two."""


def launch(kernel: Any, layout: Layout, tiling: Tiling, *arguments: Any, **constants: Any) -> None:
    """Start every program that the tensor needs, on the device of the first argument; none for an empty tensor."""
    if layout.numel:
        with torch.cuda.device_of(arguments[0]):
            kernel[(tiling.programs(layout),)](
                *arguments,
                outer=layout.outer, channels=layout.channels, inner=layout.inner,
                chunk_outer=tiling.chunk_outer, chunk_inner=tiling.chunk_inner,
                splits_outer=tiling.splits_outer, splits_inner=tiling.splits_inner,
                TILE_OUTER=tiling.outer, TILE_CHANNELS=tiling.channels, TILE_INNER=tiling.inner,
                **constants, **LAUNCH,
            )  # fmt: skip


def packed(*tensors: Tensor | None) -> list[Tensor | None]:
    """Small tensors that a program reads by index alone, one element after the other."""
    return [None if t is None else t.contiguous() for t in tensors]


def double(x: Tensor) -> bool:
    """Whether the arithmetic is float64; it is float32 for everything else."""
    return x.dtype == torch.float64


@triton.jit
def locate(program, channels, splits_outer, splits_inner, TILE_CHANNELS: tl.constexpr):
    """(group, chunk of outer, chunk of inner, block of channels) of a program; blocks of channels go fastest.

    Divided in 32 bits, which is cheap, and returned in 64, because a chunk times its length need not fit in 32.
    """
    blocks = tl.cdiv(channels, TILE_CHANNELS)
    block = program % blocks
    rest = program // blocks
    chunk_inner = rest % splits_inner
    rest = rest // splits_inner
    group, chunk_outer = rest // splits_outer, rest % splits_outer
    return group.to(tl.int64), chunk_outer.to(tl.int64), chunk_inner.to(tl.int64), block


@triton.jit
def tile(group, o, c, i, outer, channels, inner, end_outer, end_inner):
    """Offsets of a tile's elements, 64 bits wide as `group`, `o` and `i` are, and which of them exist."""
    exists = (o < end_outer) & (c < channels) & (i < end_inner)
    return ((group * outer + o) * channels + c) * inner + i, exists


@triton.jit
def place(
    program, outer, channels, inner, chunk_outer, chunk_inner, splits_outer, splits_inner,
    TILE_OUTER: tl.constexpr, TILE_CHANNELS: tl.constexpr, TILE_INNER: tl.constexpr,
):  # fmt: skip
    """Offsets of the only tile of a program, which of its elements exist, and its channels."""
    group, chunk_o, chunk_i, block = locate(program, channels, splits_outer, splits_inner, TILE_CHANNELS)
    o = chunk_o * chunk_outer + tl.arange(0, TILE_OUTER)[:, None, None]
    c = block * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)[None, :, None]
    i = chunk_i * chunk_inner + tl.arange(0, TILE_INNER)[None, None, :]
    offsets, exists = tile(group, o, c, i, outer, channels, inner, outer, inner)
    return offsets, exists, c


@triton.jit
def inverse(scale, DOUBLE: tl.constexpr):
    """1 / scale, correctly rounded: plain division is not, on a GPU, in float32."""
    if DOUBLE:
        return 1.0 / scale
    else:
        return tl.div_rn(1.0, scale)


@triton.jit
def quotient(a, b, DOUBLE: tl.constexpr):
    """a / b, correctly rounded: for kilobytes, where a digit matters more than the time."""
    if DOUBLE:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def root(x, DOUBLE: tl.constexpr):
    """The square root, correctly rounded."""
    if DOUBLE:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def clamp(x, low, high):
    """x between low and high; NaN stays NaN."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def nearest(x, DOUBLE: tl.constexpr):
    """The nearest integer, half to even, for |x| < 2^22: adding 1.5 · 2^23 leaves no bit for a fraction.

    The same two additions everywhere: the interpreter has no rint.
    """
    magic = 6755399441055744.0 if DOUBLE else 12582912.0
    return (x + magic) - magic


@triton.jit
def grid_of(
    row, scale_ptr, zero_ptr, quant_min, quant_max, rows,
    HAS_ZERO: tl.constexpr, ROUND_ZERO: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Scale of each row (a channel), and the ends of its grid in steps from zero.

    A zero point that learns (ROUND_ZERO) stands for the nearest integer of the grid.
    """
    dtype = tl.float64 if DOUBLE else tl.float32
    scale = tl.load(scale_ptr + row, mask=row < rows, other=1).to(dtype)
    zero = tl.zeros_like(scale)
    if HAS_ZERO:
        zero = tl.load(zero_ptr + row, mask=row < rows, other=0).to(dtype)
        if ROUND_ZERO:
            zero = nearest(clamp(zero, quant_min, quant_max), DOUBLE)
    return scale, quant_min - zero, quant_max - zero


@triton.jit
def grid_steps(x, scale, low, high, DOUBLE: tl.constexpr):
    """x / scale, clipped to one step beyond [low, high]: small enough to round, far enough to tell."""
    return clamp(x * inverse(scale, DOUBLE), low - 1, high + 1)


@triton.jit
def grid_code(x, scale, low, high, DOUBLE: tl.constexpr):
    """rint(x / scale), where it lies beyond [low, high] some number beyond."""
    return nearest(grid_steps(x, scale, low, high, DOUBLE), DOUBLE)

"""Fake quantization, forward and backward: one read, one write, and one bit an element of what was clipped."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfqlab_kernels.layout import elementwise_layout, elementwise_tiling, laid_out
from dfqlab_kernels.programs.tiles import clamp, double, grid_code, grid_of, launch, packed, place


def forward(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    axis: int | None,
    quant_min: int,
    quant_max: int,
    *,
    pack: bool = False,
    round_zero: bool = False,
) -> tuple[Tensor, Tensor]:
    """The result, laid out as x, and a bit for every element that was not clipped (none unless asked)."""
    x, layout = elementwise_layout(x, axis)
    tiling = elementwise_tiling(layout)
    words = tiling.programs(layout) * tiling.tile // 32 if pack else 0
    y, inside = torch.empty_like(x), torch.empty(words, dtype=torch.int32, device=x.device)
    launch(
        _forward, layout, tiling, x, *packed(scale, zero_point), y, inside, quant_min, quant_max,
        HAS_ZERO=zero_point is not None, ROUND_ZERO=round_zero, PACK=pack, DOUBLE=double(x),
    )  # fmt: skip
    return y, inside


def backward_from_bits(dy: Tensor, inside: Tensor, axis: int | None, stride: list[int]) -> Tensor:
    """The gradient where a bit is set, zero elsewhere; `stride` is that of the forward's result."""
    dy, layout = elementwise_layout(laid_out(dy, stride), axis)
    dx = torch.empty_like(dy)
    launch(_backward_from_bits, layout, elementwise_tiling(layout), dy, inside, dx)
    return dx


def backward_from_input(
    dy: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int | None, quant_min: int, quant_max: int
) -> Tensor:
    """The gradient where x, read again, is not clipped; zero elsewhere."""
    x, layout = elementwise_layout(x, axis)
    dx = torch.empty_like(x)
    launch(
        _backward_from_input, layout, elementwise_tiling(layout), laid_out(dy, x.stride()), x,
        *packed(scale, zero_point), dx, quant_min, quant_max, HAS_ZERO=zero_point is not None, DOUBLE=double(x),
    )  # fmt: skip
    return dx


@triton.jit
def _forward(
    x_ptr, scale_ptr, zero_ptr, y_ptr, inside_ptr, quant_min, quant_max,
    outer, channels, inner, chunk_outer, chunk_inner, splits_outer, splits_inner,
    TILE_OUTER: tl.constexpr, TILE_CHANNELS: tl.constexpr, TILE_INNER: tl.constexpr,
    HAS_ZERO: tl.constexpr, ROUND_ZERO: tl.constexpr, PACK: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    offsets, exists, c = place(
        tl.program_id(0), outer, channels, inner, chunk_outer, chunk_inner, splits_outer, splits_inner,
        TILE_OUTER, TILE_CHANNELS, TILE_INNER,
    )  # fmt: skip
    scale, low, high = grid_of(c, scale_ptr, zero_ptr, quant_min, quant_max, channels, HAS_ZERO, ROUND_ZERO, DOUBLE)
    x = tl.load(x_ptr + offsets, mask=exists, other=0).to(scale.dtype)
    code = grid_code(x, scale, low, high, DOUBLE)
    tl.store(y_ptr + offsets, (clamp(code, low, high) * scale).to(y_ptr.dtype.element_ty), mask=exists)
    if PACK:
        WORDS: tl.constexpr = TILE_OUTER * TILE_CHANNELS * TILE_INNER // 32
        inside = ((code >= low) & (code <= high)).to(tl.int32)
        bits = tl.reshape(inside, (WORDS, 32)) << tl.arange(0, 32)[None, :]
        tl.store(inside_ptr + tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS), tl.sum(bits, axis=1))


@triton.jit
def _backward_from_bits(
    dy_ptr, inside_ptr, dx_ptr,
    outer, channels, inner, chunk_outer, chunk_inner, splits_outer, splits_inner,
    TILE_OUTER: tl.constexpr, TILE_CHANNELS: tl.constexpr, TILE_INNER: tl.constexpr,
):  # fmt: skip
    offsets, exists, _ = place(
        tl.program_id(0), outer, channels, inner, chunk_outer, chunk_inner, splits_outer, splits_inner,
        TILE_OUTER, TILE_CHANNELS, TILE_INNER,
    )  # fmt: skip
    WORDS: tl.constexpr = TILE_OUTER * TILE_CHANNELS * TILE_INNER // 32
    words = tl.load(inside_ptr + tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS))
    bits = (words[:, None] >> tl.arange(0, 32)[None, :]) & 1
    inside = tl.reshape(bits, (TILE_OUTER, TILE_CHANNELS, TILE_INNER)) != 0
    pass_on(dy_ptr, dx_ptr, offsets, exists, inside)


@triton.jit
def _backward_from_input(
    dy_ptr, x_ptr, scale_ptr, zero_ptr, dx_ptr, quant_min, quant_max,
    outer, channels, inner, chunk_outer, chunk_inner, splits_outer, splits_inner,
    TILE_OUTER: tl.constexpr, TILE_CHANNELS: tl.constexpr, TILE_INNER: tl.constexpr,
    HAS_ZERO: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    offsets, exists, c = place(
        tl.program_id(0), outer, channels, inner, chunk_outer, chunk_inner, splits_outer, splits_inner,
        TILE_OUTER, TILE_CHANNELS, TILE_INNER,
    )  # fmt: skip
    scale, low, high = grid_of(c, scale_ptr, zero_ptr, quant_min, quant_max, channels, HAS_ZERO, False, DOUBLE)
    x = tl.load(x_ptr + offsets, mask=exists, other=0).to(scale.dtype)
    code = grid_code(x, scale, low, high, DOUBLE)
    pass_on(dy_ptr, dx_ptr, offsets, exists, (code >= low) & (code <= high))


@triton.jit
def pass_on(dy_ptr, dx_ptr, offsets, exists, inside):
    """The gradient where something is inside, else zero. Loaded everywhere: only a regular mask loads whole vectors."""
    dy = tl.load(dy_ptr + offsets, mask=exists, other=0)
    tl.store(dx_ptr + offsets, tl.where(inside, dy, tl.zeros_like(dy)), mask=exists)

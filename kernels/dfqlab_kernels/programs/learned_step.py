"""Fake quantization whose step learns: x and its gradient are read once for the gradients of all three."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfqlab_kernels.layout import elementwise_layout, laid_out, reduction_tiling
from dfqlab_kernels.programs import quantization
from dfqlab_kernels.programs.merging import merge
from dfqlab_kernels.programs.tiles import double, grid_of, grid_steps, launch, locate, nearest, packed, tile


def forward(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int | None, quant_min: int, quant_max: int
) -> Tensor:
    """The result, laid out as x."""
    return quantization.forward(x, scale, zero_point, axis, quant_min, quant_max, round_zero=True)[0]


def backward(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    axis: int | None,
    quant_min: int,
    quant_max: int,
    gradient_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, laid out as x, of the scale, and of the zero point (empty where there is none)."""
    x, layout = elementwise_layout(x, axis)
    tiling = reduction_tiling(layout)
    kinds = 1 if zero_point is None else 2
    dx = torch.empty_like(x)
    splits = tiling.splits if layout.numel else 0
    partials = x.new_empty((kinds, splits, layout.channels), dtype=torch.float64 if double(x) else torch.float32)
    launch(
        _backward, layout, tiling, laid_out(dy, x.stride()), x, *packed(scale, zero_point), dx, partials,
        quant_min, quant_max,
        HAS_ZERO=zero_point is not None, DOUBLE=double(x),
    )  # fmt: skip
    ds = merge(partials[0], gradient_scale).reshape(scale.shape).to(scale.dtype)
    if zero_point is None:
        return dx, ds, scale.new_empty(0)
    return dx, ds, merge(partials[1], gradient_scale).reshape(zero_point.shape).to(zero_point.dtype)


@triton.jit
def _backward(
    dy_ptr, x_ptr, scale_ptr, zero_ptr, dx_ptr, partials_ptr, quant_min, quant_max,
    outer, channels, inner, chunk_outer, chunk_inner, splits_outer, splits_inner,
    TILE_OUTER: tl.constexpr, TILE_CHANNELS: tl.constexpr, TILE_INNER: tl.constexpr,
    HAS_ZERO: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    group, chunk_o, chunk_i, block = locate(tl.program_id(0), channels, splits_outer, splits_inner, TILE_CHANNELS)
    c = block * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)[None, :, None]
    scale, low, high = grid_of(c, scale_ptr, zero_ptr, quant_min, quant_max, channels, HAS_ZERO, True, DOUBLE)
    # Each lane keeps a sum of its own until the end: the loop has no reduction in it, and sums stay short.
    ds = tl.zeros((TILE_OUTER, TILE_CHANNELS, TILE_INNER), scale.dtype)
    dz = tl.zeros((TILE_OUTER, TILE_CHANNELS, TILE_INNER), scale.dtype)
    begin_o, begin_i = chunk_o * chunk_outer, chunk_i * chunk_inner
    end_o, end_i = tl.minimum(begin_o + chunk_outer, outer), tl.minimum(begin_i + chunk_inner, inner)
    for o_ in range(begin_o, end_o, TILE_OUTER):
        for i_ in range(begin_i, end_i, TILE_INNER):
            o = o_ + tl.arange(0, TILE_OUTER)[:, None, None]
            i = i_ + tl.arange(0, TILE_INNER)[None, None, :]
            offsets, exists = tile(group, o, c, i, outer, channels, inner, end_o, end_i)
            x = tl.load(x_ptr + offsets, mask=exists, other=0).to(scale.dtype)
            dy = tl.load(dy_ptr + offsets, mask=exists, other=0)
            steps = grid_steps(x, scale, low, high, DOUBLE)
            code = nearest(steps, DOUBLE)
            inside = (code >= low) & (code <= high)
            clipped = (code < low) | (code > high)  # NaN is neither, and has no gradient
            tl.store(dx_ptr + offsets, tl.where(inside, dy, tl.zeros_like(dy)), mask=exists)
            d = dy.to(scale.dtype)
            end = tl.where(code < low, low, high)
            ds += tl.where(inside, d * (code - steps), tl.where(clipped, d * end, 0.0))
            if HAS_ZERO:
                dz += tl.where(clipped, d * -scale, 0.0)
    partials = partials_ptr + (chunk_o * splits_inner + chunk_i) * channels + c
    tl.store(partials, tl.sum(tl.sum(ds, axis=2, keep_dims=True), axis=0, keep_dims=True), mask=c < channels)
    if HAS_ZERO:
        dz = tl.sum(tl.sum(dz, axis=2, keep_dims=True), axis=0, keep_dims=True)
        tl.store(partials + splits_outer * splits_inner * channels, dz, mask=c < channels)

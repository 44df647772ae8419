"""Moments of each channel in one read of x, with BatchNorm and its activation where they are wanted, and backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfqlab_kernels.layout import channel_layout, laid_out, reduction_tiling
from dfqlab_kernels.programs.tiles import clamp, double, launch, locate, packed, tile

ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2}


def moments(x: Tensor, per_sample: bool) -> Tensor:
    """(3, groups, splits, c): count, mean and sum of squared deviations of every part of a channel."""
    x, layout = channel_layout(x, per_sample=per_sample)
    tiling = reduction_tiling(layout)
    result = _new_moments(x, layout.groups, tiling.splits)
    launch(
        _moments, layout, tiling, x, None, None, None, None, result,
        NORMALIZE=False, ACTIVATION=0, HAS_RESIDUAL=False, DOUBLE=double(x),
    )  # fmt: skip
    return result


def normalized(
    x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, activation: str, per_sample: bool
) -> tuple[Tensor, Tensor]:
    """`activation(x * scale + shift + residual)` and the moments of x, x read once."""
    x, layout = channel_layout(x, per_sample=per_sample)
    tiling = reduction_tiling(layout)
    y, result = torch.empty_like(x), _new_moments(x, layout.groups, tiling.splits)
    residual = None if residual is None else laid_out(residual, x.stride())
    launch(
        _moments, layout, tiling, x, *packed(scale, shift), residual, y, result,
        NORMALIZE=True, ACTIVATION=ACTIVATIONS[activation], HAS_RESIDUAL=residual is not None, DOUBLE=double(x),
    )  # fmt: skip
    return y, result


def moments_backward(x: Tensor, found: Tensor, to_moments: Tensor, dx: Tensor | None, per_sample: bool) -> Tensor:
    """The gradient of x from that of its moments, added to `dx` where there is one."""
    x, layout = channel_layout(x, per_sample=per_sample)
    result = torch.empty_like(x)
    dx = None if dx is None else laid_out(dx, x.stride())
    launch(
        _moments_backward, layout, reduction_tiling(layout), x, None, None, None, found, to_moments.contiguous(), dx,
        result, None, NORMALIZED=False, ACTIVATION=0, HAS_Y=False, HAS_DY=dx is not None, TO_RESIDUAL=False,
        DOUBLE=double(x),
    )  # fmt: skip
    return result


def normalized_backward(
    dy: Tensor,
    to_moments: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    y: Tensor | None,
    found: Tensor,
    activation: str,
    to_residual: bool,
    per_sample: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the residual (empty unless asked). `y` decides what the activation clipped, if given."""
    x, layout = channel_layout(x, per_sample=per_sample)
    dx = torch.empty_like(x)
    residual = torch.empty_like(x) if to_residual else x.new_empty(0)
    launch(
        _moments_backward, layout, reduction_tiling(layout), x, *packed(scale, shift), y, found,
        to_moments.contiguous(), laid_out(dy, x.stride()), dx, residual,
        NORMALIZED=True, ACTIVATION=ACTIVATIONS[activation], HAS_Y=y is not None, HAS_DY=True,
        TO_RESIDUAL=to_residual, DOUBLE=double(x),
    )  # fmt: skip
    return dx, residual


def _new_moments(x: Tensor, groups: int, splits: int) -> Tensor:
    dtype = torch.float64 if double(x) else torch.float32
    return torch.empty(3, groups, splits, x.shape[1], dtype=dtype, device=x.device)


@triton.jit
def _moments(
    x_ptr, scale_ptr, shift_ptr, residual_ptr, y_ptr, moments_ptr,
    outer, channels, inner, chunk_outer, chunk_inner, splits_outer, splits_inner,
    TILE_OUTER: tl.constexpr, TILE_CHANNELS: tl.constexpr, TILE_INNER: tl.constexpr,
    NORMALIZE: tl.constexpr, ACTIVATION: tl.constexpr, HAS_RESIDUAL: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    dtype = tl.float64 if DOUBLE else tl.float32
    group, chunk_o, chunk_i, block = locate(tl.program_id(0), channels, splits_outer, splits_inner, TILE_CHANNELS)
    first_o, first_i = chunk_o * chunk_outer, chunk_i * chunk_inner
    end_o, end_i = tl.minimum(first_o + chunk_outer, outer), tl.minimum(first_i + chunk_inner, inner)
    c = block * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)[None, :, None]
    # Deviations from the first element: exact for a constant channel, and without cancellation for any other whose
    # first element is not an outlier by thousands of deviations.
    start, _ = tile(group, first_o, c, first_i, outer, channels, inner, end_o, end_i)
    base = tl.load(x_ptr + start, mask=c < channels, other=0).to(dtype)
    if NORMALIZE:
        scale = tl.load(scale_ptr + c, mask=c < channels, other=0).to(dtype)
        shift = tl.load(shift_ptr + c, mask=c < channels, other=0).to(dtype)
    count = tl.zeros_like(base)
    mean = tl.zeros_like(base)
    squares = tl.zeros_like(base)
    for to in range(first_o, end_o, TILE_OUTER):
        for ti in range(first_i, end_i, TILE_INNER):
            o = to + tl.arange(0, TILE_OUTER)[:, None, None]
            i = ti + tl.arange(0, TILE_INNER)[None, None, :]
            offsets, exists = tile(group, o, c, i, outer, channels, inner, end_o, end_i)
            x = tl.load(x_ptr + offsets, mask=exists, other=0).to(dtype)
            if NORMALIZE:
                z = x * scale + shift
                if HAS_RESIDUAL:
                    z += tl.load(residual_ptr + offsets, mask=exists, other=0).to(dtype)
                tl.store(y_ptr + offsets, activate(z, ACTIVATION).to(y_ptr.dtype.element_ty), mask=exists)
            found = (tl.minimum(end_o - to, TILE_OUTER) * tl.minimum(end_i - ti, TILE_INNER)).to(dtype)
            x = tl.where(exists, x - base, 0)
            tile_mean = over_tile(x) / found
            x = tl.where(exists, x - tile_mean, 0)
            apart = tile_mean - mean
            count += found
            mean += apart * (found / count)
            squares += over_tile(x * x) + apart * apart * (found * (count - found) / count)
    row = group * (splits_outer * splits_inner) + chunk_o * splits_inner + chunk_i
    rows = tl.num_programs(0) // tl.cdiv(channels, TILE_CHANNELS)
    at = moments_ptr + row.to(tl.int64) * channels + c
    step = rows.to(tl.int64) * channels
    tl.store(at, count, mask=c < channels)
    tl.store(at + step, base + mean, mask=c < channels)
    tl.store(at + 2 * step, squares, mask=c < channels)


@triton.jit
def _moments_backward(
    x_ptr, scale_ptr, shift_ptr, y_ptr, moments_ptr, to_moments_ptr, dy_ptr, dx_ptr, to_residual_ptr,
    outer, channels, inner, chunk_outer, chunk_inner, splits_outer, splits_inner,
    TILE_OUTER: tl.constexpr, TILE_CHANNELS: tl.constexpr, TILE_INNER: tl.constexpr,
    NORMALIZED: tl.constexpr, ACTIVATION: tl.constexpr, HAS_Y: tl.constexpr, HAS_DY: tl.constexpr,
    TO_RESIDUAL: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    dtype = tl.float64 if DOUBLE else tl.float32
    group, chunk_o, chunk_i, block = locate(tl.program_id(0), channels, splits_outer, splits_inner, TILE_CHANNELS)
    first_o, first_i = chunk_o * chunk_outer, chunk_i * chunk_inner
    end_o, end_i = tl.minimum(first_o + chunk_outer, outer), tl.minimum(first_i + chunk_inner, inner)
    c = block * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)[None, :, None]
    row = group * (splits_outer * splits_inner) + chunk_o * splits_inner + chunk_i
    rows = tl.num_programs(0) // tl.cdiv(channels, TILE_CHANNELS)
    at = row.to(tl.int64) * channels + c
    step = rows.to(tl.int64) * channels
    count = tl.load(moments_ptr + at, mask=c < channels, other=1)
    mean = tl.load(moments_ptr + step + at, mask=c < channels, other=0)
    constant = tl.load(to_moments_ptr + step + at, mask=c < channels, other=0).to(dtype) / count
    slope = 2 * tl.load(to_moments_ptr + 2 * step + at, mask=c < channels, other=0).to(dtype)
    if NORMALIZED:
        scale = tl.load(scale_ptr + c, mask=c < channels, other=0).to(dtype)
        shift = tl.load(shift_ptr + c, mask=c < channels, other=0).to(dtype)
    for to in range(first_o, end_o, TILE_OUTER):
        for ti in range(first_i, end_i, TILE_INNER):
            o = to + tl.arange(0, TILE_OUTER)[:, None, None]
            i = ti + tl.arange(0, TILE_INNER)[None, None, :]
            offsets, exists = tile(group, o, c, i, outer, channels, inner, end_o, end_i)
            x = tl.load(x_ptr + offsets, mask=exists, other=0).to(dtype)
            dx = constant + tl.where(slope != 0, slope * (x - mean), 0)  # an infinite mean nobody asked about stays out
            if HAS_DY:
                dy = tl.load(dy_ptr + offsets, mask=exists, other=0).to(dtype)
                if ACTIVATION != 0:
                    if HAS_Y:  # noqa: SIM108
                        z = tl.load(y_ptr + offsets, mask=exists, other=0).to(dtype)
                    else:
                        z = x * scale + shift
                    dy = tl.where(passes(z, ACTIVATION), dy, 0)
                if TO_RESIDUAL:
                    tl.store(to_residual_ptr + offsets, dy.to(to_residual_ptr.dtype.element_ty), mask=exists)
                if NORMALIZED:
                    dy = dy * scale
                dx += dy
            tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=exists)


@triton.jit
def over_tile(x):
    """The sum of each channel of a tile, (1, channels, 1)."""
    return tl.sum(tl.sum(x, axis=2, keep_dims=True), axis=0, keep_dims=True)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """Nothing, ReLU or ReLU6; NaN stays NaN."""
    if ACTIVATION == 1:
        z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if ACTIVATION == 2:
        z = clamp(z, 0.0, 6.0)
    return z


@triton.jit
def passes(z, ACTIVATION: tl.constexpr):
    """Whether the activation lets the gradient through, as torch's own do: not at the corner, but for NaN."""
    clipped = z <= 0
    if ACTIVATION == 2:
        clipped = clipped | (z >= 6)
    return clipped == 0

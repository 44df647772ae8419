"""Soft rounding of packed weights: one launch for all tensors, forward and backward."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfqlab_kernels import layout
from dfqlab_kernels.programs.merging import merge
from dfqlab_kernels.programs.tiles import LAUNCH, clamp, double, grid_of, inverse

COLUMNS = 5


def forward(
    weights: Tensor,
    logits: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    beta: Tensor,
    sizes: Sequence[int],
    quant_min: int,
    quant_max: int,
    gamma: float,
    zeta: float,
) -> tuple[Tensor, Tensor]:
    """The softly rounded weights, and the penalty."""
    y, table = torch.empty_like(weights, memory_format=torch.contiguous_format), _table_for(weights, sizes)
    partials = weights.new_empty((len(table), 1), dtype=torch.float64 if double(weights) else torch.float32)
    _launch(
        _forward, table, weights, logits, scale, zero_point, beta, y, partials, quant_min, quant_max,
        GAMMA=gamma, ZETA=zeta,
    )  # fmt: skip
    return y, merge(partials).reshape(())


def backward(
    dy: Tensor,
    dpenalty: Tensor,
    weights: Tensor,
    logits: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    beta: Tensor,
    sizes: Sequence[int],
    quant_min: int,
    quant_max: int,
    gamma: float,
    zeta: float,
) -> Tensor:
    """The gradient of the logits, from both results at once."""
    dlogits, table = torch.empty_like(logits, memory_format=torch.contiguous_format), _table_for(weights, sizes)
    _launch(
        _backward, table, weights, logits, scale, zero_point, beta, dy.contiguous(), dpenalty, dlogits,
        quant_min, quant_max, GAMMA=gamma, ZETA=zeta,
    )  # fmt: skip
    return dlogits


def hard(
    weights: Tensor,
    logits: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    sizes: Sequence[int],
    quant_min: int,
    quant_max: int,
) -> Tensor:
    """The weights rounded up or down."""
    y, table = torch.empty_like(weights, memory_format=torch.contiguous_format), _table_for(weights, sizes)
    _launch(_hard, table, weights, logits, scale, zero_point, y, quant_min, quant_max)
    return y


def _launch(
    kernel: Any, table: Tensor, weights: Tensor, logits: Tensor, scale: Tensor, zero_point: Tensor | None,
    *arguments: Any, **constants: Any,
) -> None:  # fmt: skip
    if len(table):
        with torch.cuda.device_of(weights):
            kernel[(len(table),)](
                table, weights.contiguous(), logits.contiguous(), scale.contiguous(),
                None if zero_point is None else zero_point.contiguous(), *arguments, rows=len(scale),
                TILE=layout.TILE, HAS_ZERO=zero_point is not None, DOUBLE=double(weights), **constants, **LAUNCH,
            )  # fmt: skip


def _table_for(weights: Tensor, sizes: Sequence[int]) -> Tensor:
    return table_of(tuple(sizes), weights.device, layout.TILE)


@lru_cache(maxsize=64)
def table_of(sizes: tuple[int, ...], device: torch.device, tile: int) -> Tensor:
    """What each program works on, in a row of its own; no program crosses from one tensor into the next.

    Columns: the first element; how many; the row in which that element lies, and where; the length of the rows.
    """
    programs, start, row = [torch.empty(0, COLUMNS, dtype=torch.int64)], 0, 0
    for rows, length in zip(sizes[::2], sizes[1::2], strict=True):
        begin = torch.arange(0, rows * length, tile)
        count = (rows * length - begin).clamp(max=tile)
        of_row = begin // max(length, 1)
        columns = [start + begin, count, row + of_row, begin - of_row * length, torch.full_like(begin, length)]
        programs.append(torch.stack(columns, 1))
        start, row = start + rows * length, row + rows
    return torch.cat(programs).to(device)


@triton.jit
def _place(table_ptr, TILE: tl.constexpr):
    """Offsets of this program's elements, which of them exist, and the row of each."""
    entry = table_ptr + tl.program_id(0).to(tl.int64) * 5
    begin, row = tl.load(entry), tl.load(entry + 2)
    count, phase, length = tl.load(entry + 1).to(tl.int32), tl.load(entry + 3).to(tl.int32), tl.load(entry + 4)
    lane = tl.arange(0, TILE)
    return begin + lane, lane < count, row + (phase + lane) // length.to(tl.int32)


@triton.jit
def _sigmoid(x):
    """Without an overflow on either side."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def _power(x, exponent):
    """x to the exponent for 0 <= x <= 1; a zero counts as the tiniest number, which has a logarithm."""
    return tl.exp(exponent * tl.log(clamp(x, 1e-30, 1.0)))


@triton.jit
def _forward(
    table_ptr, w_ptr, v_ptr, scale_ptr, zero_ptr, beta_ptr, y_ptr, penalty_ptr, quant_min, quant_max, rows,
    GAMMA: tl.constexpr, ZETA: tl.constexpr, TILE: tl.constexpr, HAS_ZERO: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    offsets, exists, row = _place(table_ptr, TILE)
    scale, low, high = grid_of(row, scale_ptr, zero_ptr, quant_min, quant_max, rows, HAS_ZERO, False, DOUBLE)
    w = tl.load(w_ptr + offsets, mask=exists, other=0).to(scale.dtype)
    v = tl.load(v_ptr + offsets, mask=exists, other=0).to(scale.dtype)
    up = clamp(_sigmoid(v) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)
    code = tl.floor(w * inverse(scale, DOUBLE)) + up
    tl.store(y_ptr + offsets, (clamp(code, low, high) * scale).to(y_ptr.dtype.element_ty), mask=exists)
    penalty = 1.0 - _power(tl.abs(2.0 * up - 1.0), tl.load(beta_ptr).to(scale.dtype))
    tl.store(penalty_ptr + tl.program_id(0), tl.sum(tl.where(exists, penalty, 0.0), axis=0))


@triton.jit
def _backward(
    table_ptr, w_ptr, v_ptr, scale_ptr, zero_ptr, beta_ptr, dy_ptr, dpenalty_ptr, dv_ptr, quant_min, quant_max, rows,
    GAMMA: tl.constexpr, ZETA: tl.constexpr, TILE: tl.constexpr, HAS_ZERO: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    offsets, exists, row = _place(table_ptr, TILE)
    scale, low, high = grid_of(row, scale_ptr, zero_ptr, quant_min, quant_max, rows, HAS_ZERO, False, DOUBLE)
    w = tl.load(w_ptr + offsets, mask=exists, other=0).to(scale.dtype)
    v = tl.load(v_ptr + offsets, mask=exists, other=0).to(scale.dtype)
    dy = tl.load(dy_ptr + offsets, mask=exists, other=0).to(scale.dtype)
    beta, dpenalty = tl.load(beta_ptr).to(scale.dtype), tl.load(dpenalty_ptr).to(scale.dtype)
    sigmoid = _sigmoid(v)
    stretched = sigmoid * (ZETA - GAMMA) + GAMMA
    up = clamp(stretched, 0.0, 1.0)
    code = tl.floor(w * inverse(scale, DOUBLE)) + up
    signed = 2.0 * up - 1.0
    slope = 2.0 * beta * _power(tl.abs(signed), beta - 1.0)
    dup = tl.where((code >= low) & (code <= high), dy * scale, 0.0)
    dup -= dpenalty * tl.where(signed > 0, slope, tl.where(signed < 0, -slope, 0.0))
    dv = dup * sigmoid * (1.0 - sigmoid) * (ZETA - GAMMA)
    dv = tl.where((stretched >= 0) & (stretched <= 1), dv, 0.0)
    tl.store(dv_ptr + offsets, dv.to(dv_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _hard(
    table_ptr, w_ptr, v_ptr, scale_ptr, zero_ptr, y_ptr, quant_min, quant_max, rows,
    TILE: tl.constexpr, HAS_ZERO: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    offsets, exists, row = _place(table_ptr, TILE)
    scale, low, high = grid_of(row, scale_ptr, zero_ptr, quant_min, quant_max, rows, HAS_ZERO, False, DOUBLE)
    w = tl.load(w_ptr + offsets, mask=exists, other=0).to(scale.dtype)
    v = tl.load(v_ptr + offsets, mask=exists, other=0).to(scale.dtype)
    up = tl.where(v >= 0, 1.0, tl.where(v < 0, 0.0, v))  # NaN stays NaN
    code = tl.floor(w * inverse(scale, DOUBLE)) + up
    tl.store(y_ptr + offsets, (clamp(code, low, high) * scale).to(y_ptr.dtype.element_ty), mask=exists)

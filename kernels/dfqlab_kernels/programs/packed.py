"""All layers at once: their moments merged, and their distance from what BatchNorm remembers, a launch each.

A launch has one program for each (block of channels of a layer, group); a table says where each block lies.
"""

from collections.abc import Sequence
from functools import cache
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfqlab_kernels.programs.tiles import LAUNCH, double, inverse, packed, quotient, root

BLOCK = 32  # channels of one program that merges
PARTS = 32  # parts of a channel that it reads at once
DISTANCES = {"squared": 0, "l2": 1, "kl": 2}


def merge(moments: Sequence[Tensor], correction: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (groups, total) of all layers, and their moments in one buffer."""
    buffer = torch.cat([m.flatten() for m in moments])
    groups, total = moments[0].shape[1], sum(m.shape[3] for m in moments)
    mean, var = buffer.new_empty(groups, total), buffer.new_empty(groups, total)
    table = _merge_table(_sides(moments), buffer.device)
    with torch.cuda.device_of(buffer):
        _merge[(len(table), groups)](
            buffer, table, mean, var, total, correction, BLOCK=BLOCK, PARTS=PARTS, DOUBLE=double(buffer), **LAUNCH
        )
    return mean, var, buffer


def merge_backward(
    to_mean: Tensor, to_var: Tensor, buffer: Tensor, mean: Tensor, sides: Sequence[int], correction: int
) -> Tensor:
    """The gradient of the buffer of moments; `sides` are splits and channels of each layer, in turn."""
    to_packed = torch.empty_like(buffer)
    table = _merge_table(tuple(zip(sides[::2], sides[1::2], strict=True)), buffer.device)
    groups, total = mean.shape
    with torch.cuda.device_of(buffer):
        _merge_backward[(len(table), groups)](
            to_mean.contiguous(), to_var.contiguous(), buffer, mean, table, to_packed, total, correction, BLOCK=BLOCK,
            PARTS=PARTS, DOUBLE=double(buffer), **LAUNCH,
        )  # fmt: skip
    return to_packed


def align(
    mean: Tensor,
    var: Tensor,
    target_mean: Tensor,
    target_var: Tensor,
    mean_margin: Tensor | None,
    spread_margin: Tensor | None,
    channels: Sequence[int],
    distance: str,
    spread: str,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """The distance of each sample and layer (n, layers), and the norms that the gradient needs (2, n, layers)."""
    n, layers = mean.shape[0], len(channels)
    mean, var = _side_by_side(mean, var)
    distances, norms = mean.new_empty(n, layers), mean.new_empty(2, n, layers)
    with torch.cuda.device_of(mean):
        _align[(layers, n)](
            mean, var, mean.stride(0), *packed(target_mean, target_var, mean_margin, spread_margin),
            _starts(tuple(channels), mean.device), distances, norms, epsilon,
            DISTANCE=DISTANCES[distance], STD=spread == "std", HAS_MARGINS=mean_margin is not None,
            DOUBLE=double(mean), BLOCK=BLOCK, **LAUNCH,
        )  # fmt: skip
    return distances, norms


def align_backward(
    to_distances: Tensor,
    norms: Tensor,
    mean: Tensor,
    var: Tensor,
    target_mean: Tensor,
    target_var: Tensor,
    mean_margin: Tensor | None,
    spread_margin: Tensor | None,
    channels: Sequence[int],
    distance: str,
    spread: str,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of mean and variance, (n, total)."""
    to_mean, to_var = mean.new_empty(mean.shape), mean.new_empty(mean.shape)
    mean, var = _side_by_side(mean, var)
    with torch.cuda.device_of(mean):
        _align_backward[(len(channels), mean.shape[0])](
            to_distances, *to_distances.stride(), norms, mean, var, mean.stride(0),
            *packed(target_mean, target_var, mean_margin, spread_margin), _starts(tuple(channels), mean.device),
            to_mean, to_var, mean.shape[1], epsilon,
            DISTANCE=DISTANCES[distance], STD=spread == "std", HAS_MARGINS=mean_margin is not None,
            DOUBLE=double(mean), BLOCK=BLOCK, **LAUNCH,
        )  # fmt: skip
    return to_mean, to_var


def _side_by_side(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Channels one after the other, and samples of both equally far apart."""
    fits = mean.stride(1) == 1 and (mean.stride() == var.stride() or len(mean) == 1 == var.stride(1))
    return (mean, var) if fits else (mean.contiguous(), var.contiguous())


def _sides(moments: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    return tuple((m.shape[2], m.shape[3]) for m in moments)


@cache  # a captured graph may still read any of them
def _merge_table(sides: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """A row of five numbers for each block of channels; made once, so that a captured graph finds it.

    Elements of the moments of earlier layers in one group; splits and channels of this layer; the block's first channel
    in its layer, and among all layers.
    """
    rows, before, packed = [], 0, 0
    for splits, channels in sides:
        rows += [(packed, splits, channels, first, before + first) for first in range(0, channels, BLOCK)]
        before, packed = before + channels, packed + 3 * splits * channels
    return torch.tensor(rows, dtype=torch.int64, device=device)


@cache  # a captured graph may still read any of them
def _starts(channels: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each layer begins among all channels, and where the last one ends."""
    return torch.tensor([0, *accumulate(channels)], dtype=torch.int64, device=device)


@triton.jit
def block_of(table_ptr, BLOCK: tl.constexpr):
    """What the table says of this program's block: where its moments lie, the sides, and the channels."""
    entry = table_ptr + tl.program_id(0) * 5
    base = tl.load(entry) * tl.num_programs(1)
    splits, channels = tl.load(entry + 1), tl.load(entry + 2)
    c = tl.arange(0, BLOCK)[None, :]
    exists = tl.load(entry + 3) + c < channels
    first = base + tl.program_id(1) * splits * channels + tl.load(entry + 3) + c
    return first, tl.num_programs(1) * splits * channels, splits, channels, exists, tl.load(entry + 4) + c


@triton.jit
def over_parts(values):
    """The sum of each column of a tile, (1, channels)."""
    return tl.sum(values, axis=0, keep_dims=True)


@triton.jit
def _merge(
    packed_ptr, table_ptr, mean_ptr, var_ptr, total, correction,
    BLOCK: tl.constexpr, PARTS: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    first, step, splits, channels, exists, out = block_of(table_ptr, BLOCK)
    base = tl.load(packed_ptr + first + step, mask=exists, other=0)
    counts = tl.zeros([PARTS, BLOCK], base.dtype)
    sums = tl.zeros([PARTS, BLOCK], base.dtype)
    for begin in range(0, splits, PARTS):
        p = begin + tl.arange(0, PARTS)[:, None]
        part, here = first + p * channels, (p < splits) & exists
        n = tl.load(packed_ptr + part, mask=here, other=0)
        counts += n
        sums += n * (tl.load(packed_ptr + part + step, mask=here, other=0) - base)
    count = tl.where(exists, over_parts(counts), 1)
    mean = base + quotient(over_parts(sums), count, DOUBLE)
    squares = tl.zeros([PARTS, BLOCK], base.dtype)
    for begin in range(0, splits, PARTS):
        p = begin + tl.arange(0, PARTS)[:, None]
        part, here = first + p * channels, (p < splits) & exists
        apart = tl.load(packed_ptr + part + step, mask=here, other=0) - mean
        squares += tl.load(packed_ptr + part + 2 * step, mask=here, other=0)
        squares += tl.load(packed_ptr + part, mask=here, other=0) * apart * apart
    out += tl.program_id(1).to(tl.int64) * total
    degrees = tl.where(exists, count - correction, 1)
    tl.store(mean_ptr + out, mean, mask=exists)
    tl.store(var_ptr + out, quotient(over_parts(squares), degrees, DOUBLE), mask=exists)


@triton.jit
def _merge_backward(
    to_mean_ptr, to_var_ptr, packed_ptr, mean_ptr, table_ptr, to_packed_ptr, total, correction,
    BLOCK: tl.constexpr, PARTS: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    first, step, splits, channels, exists, out = block_of(table_ptr, BLOCK)
    out += tl.program_id(1).to(tl.int64) * total
    mean = tl.load(mean_ptr + out, mask=exists, other=0)
    counts = tl.zeros([PARTS, BLOCK], mean.dtype)
    for begin in range(0, splits, PARTS):
        p = begin + tl.arange(0, PARTS)[:, None]
        counts += tl.load(packed_ptr + first + p * channels, mask=(p < splits) & exists, other=0)
    count = tl.where(exists, over_parts(counts), 1)
    to_mean = quotient(tl.load(to_mean_ptr + out, mask=exists, other=0), count, DOUBLE)
    degrees = tl.where(exists, count - correction, 1)
    to_squares = quotient(tl.load(to_var_ptr + out, mask=exists, other=0), degrees, DOUBLE)
    for begin in range(0, splits, PARTS):
        p = begin + tl.arange(0, PARTS)[:, None]
        part, here = first + p * channels, (p < splits) & exists
        n = tl.load(packed_ptr + part, mask=here, other=0)
        apart = tl.load(packed_ptr + part + step, mask=here, other=0) - mean
        tl.store(to_packed_ptr + part, tl.zeros_like(n), mask=here)
        tl.store(to_packed_ptr + part + step, n * (to_mean + 2 * to_squares * apart), mask=here)
        tl.store(to_packed_ptr + part + 2 * step, tl.zeros_like(n) + to_squares, mask=here)


@triton.jit
def _align(
    mean_ptr, var_ptr, sample_step, target_mean_ptr, target_var_ptr, mean_margin_ptr, spread_margin_ptr, starts_ptr,
    distances_ptr, norms_ptr, epsilon: tl.float64,
    DISTANCE: tl.constexpr, STD: tl.constexpr, HAS_MARGINS: tl.constexpr, DOUBLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    layer, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    begin, end = tl.load(starts_ptr + layer), tl.load(starts_ptr + layer + 1)
    dtype = tl.float64 if DOUBLE else tl.float32
    of_means, of_spreads = tl.zeros([BLOCK], dtype), tl.zeros([BLOCK], dtype)
    epsilons = tl.full([BLOCK], epsilon, dtype)
    for first in range(begin, end, BLOCK):
        c = first + tl.arange(0, BLOCK)
        mean = tl.load(mean_ptr + sample * sample_step + c, mask=c < end, other=0).to(dtype)
        var = tl.load(var_ptr + sample * sample_step + c, mask=c < end, other=1).to(dtype)
        target_mean = tl.load(target_mean_ptr + c, mask=c < end, other=0).to(dtype)
        target_var = tl.load(target_var_ptr + c, mask=c < end, other=1).to(dtype)
        if DISTANCE == 2:
            width = target_var + epsilons
            ratio = quotient(var + epsilons, width, DOUBLE)
            of_means += quotient(0.5 * (mean - target_mean) * (mean - target_mean), width, DOUBLE)
            of_spreads += 0.5 * (ratio - 1 - tl.log(ratio))
        else:
            offset = mean - target_mean
            widening = spread_of(var, epsilons, STD, DOUBLE) - spread_of(target_var, epsilons, STD, DOUBLE)
            if HAS_MARGINS:
                offset = beyond(offset, tl.load(mean_margin_ptr + c, mask=c < end, other=0).to(dtype))
                widening = beyond(widening, tl.load(spread_margin_ptr + c, mask=c < end, other=0).to(dtype))
            of_means += offset * offset
            of_spreads += widening * widening
    mean_part, spread_part = tl.sum(of_means), tl.sum(of_spreads)
    if DISTANCE == 1:
        mean_part, spread_part = root(mean_part, DOUBLE), root(spread_part, DOUBLE)
    at = sample * tl.num_programs(0) + layer
    tl.store(distances_ptr + at, mean_part + spread_part)
    tl.store(norms_ptr + at, mean_part)
    tl.store(norms_ptr + tl.num_programs(0) * tl.num_programs(1) + at, spread_part)


@triton.jit
def _align_backward(
    to_distances_ptr, sample_stride, layer_stride, norms_ptr, mean_ptr, var_ptr, sample_step,
    target_mean_ptr, target_var_ptr, mean_margin_ptr, spread_margin_ptr, starts_ptr,
    to_mean_ptr, to_var_ptr, total, epsilon: tl.float64,
    DISTANCE: tl.constexpr, STD: tl.constexpr, HAS_MARGINS: tl.constexpr, DOUBLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    layer, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    begin, end = tl.load(starts_ptr + layer), tl.load(starts_ptr + layer + 1)
    at = sample * tl.num_programs(0) + layer
    dtype = tl.float64 if DOUBLE else tl.float32
    epsilons = tl.full([BLOCK], epsilon, dtype)
    weight = tl.load(to_distances_ptr + sample * sample_stride + layer * layer_stride)
    mean_weight, spread_weight = 2 * weight, 2 * weight
    if DISTANCE == 1:  # a norm's gradient; zero where the norm is
        mean_norm = tl.load(norms_ptr + at)
        spread_norm = tl.load(norms_ptr + tl.num_programs(0) * tl.num_programs(1) + at)
        mean_weight = tl.where(mean_norm == 0, 0, quotient(weight, tl.where(mean_norm == 0, 1, mean_norm), DOUBLE))
        spread_weight = tl.where(
            spread_norm == 0, 0, quotient(weight, tl.where(spread_norm == 0, 1, spread_norm), DOUBLE)
        )
    for first in range(begin, end, BLOCK):
        c = first + tl.arange(0, BLOCK)
        mean = tl.load(mean_ptr + sample * sample_step + c, mask=c < end, other=0).to(dtype)
        var = tl.load(var_ptr + sample * sample_step + c, mask=c < end, other=1).to(dtype)
        target_mean = tl.load(target_mean_ptr + c, mask=c < end, other=0).to(dtype)
        target_var = tl.load(target_var_ptr + c, mask=c < end, other=1).to(dtype)
        if DISTANCE == 2:
            to_mean = quotient(weight * (mean - target_mean), target_var + epsilons, DOUBLE)
            to_var = 0.5 * weight * (inverse(target_var + epsilons, DOUBLE) - inverse(var + epsilons, DOUBLE))
        else:
            offset = mean - target_mean
            widening = spread_of(var, epsilons, STD, DOUBLE) - spread_of(target_var, epsilons, STD, DOUBLE)
            if HAS_MARGINS:
                offset = beyond(offset, tl.load(mean_margin_ptr + c, mask=c < end, other=0).to(dtype))
                widening = beyond(widening, tl.load(spread_margin_ptr + c, mask=c < end, other=0).to(dtype))
            to_mean = mean_weight * offset
            to_var = spread_weight * widening
            if STD:
                to_var = quotient(0.5 * to_var, spread_of(var, epsilons, STD, DOUBLE), DOUBLE)
        tl.store(to_mean_ptr + sample * total + c, to_mean, mask=c < end)
        tl.store(to_var_ptr + sample * total + c, to_var, mask=c < end)


@triton.jit
def spread_of(var, epsilon, STD: tl.constexpr, DOUBLE: tl.constexpr):
    """The variance, or the standard deviation sqrt(var + epsilon)."""
    if STD:
        return root(var + epsilon, DOUBLE)
    else:
        return var


@triton.jit
def beyond(difference, margin):
    """What of a difference lies beyond its margin, zero inside; NaN stays NaN."""
    excess = tl.maximum(tl.abs(difference) - margin, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(difference > 0, 1, -1) * excess

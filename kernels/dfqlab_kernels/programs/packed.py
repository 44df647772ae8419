"""All layers at once: their moments merged, and their distance from what BatchNorm remembers, a launch each.

A launch has one program for each (block of channels of a layer, group); a table says where each block lies.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfqlab_kernels.programs.tiles import LAUNCH, double

BLOCK = 128  # channels of one program that merges
DISTANCES = {"squared": 0, "l2": 1, "kl": 2}


def merge(moments: Sequence[Tensor], correction: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (groups, total) of all layers, and their moments in one buffer."""
    packed = torch.cat([m.flatten() for m in moments])
    groups, total = moments[0].shape[1], sum(m.shape[3] for m in moments)
    mean, var = packed.new_empty(groups, total), packed.new_empty(groups, total)
    table = _merge_table(_sides(moments), packed.device)
    with torch.cuda.device_of(packed):
        _merge[(len(table), groups)](packed, table, mean, var, total, correction, BLOCK=BLOCK, **LAUNCH)
    return mean, var, packed


def merge_backward(
    to_mean: Tensor, to_var: Tensor, packed: Tensor, mean: Tensor, sides: Sequence[int], correction: int
) -> Tensor:
    """The gradient of the buffer of moments; `sides` are splits and channels of each layer, in turn."""
    to_packed = torch.empty_like(packed)
    table = _merge_table(tuple(zip(sides[::2], sides[1::2], strict=True)), packed.device)
    groups, total = mean.shape
    with torch.cuda.device_of(packed):
        _merge_backward[(len(table), groups)](
            to_mean.contiguous(), to_var.contiguous(), packed, mean, table, to_packed, total, correction, BLOCK=BLOCK,
            **LAUNCH,
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
    distances, norms = mean.new_empty(n, layers), mean.new_empty(2, n, layers)
    with torch.cuda.device_of(mean):
        _align[(layers, n)](
            mean.contiguous(), var.contiguous(), target_mean, target_var, mean_margin, spread_margin,
            _starts(tuple(channels), mean.device), distances, norms, mean.shape[1], epsilon,
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
    with torch.cuda.device_of(mean):
        _align_backward[(len(channels), mean.shape[0])](
            to_distances, *to_distances.stride(), norms, mean.contiguous(), var.contiguous(), target_mean, target_var,
            mean_margin, spread_margin, _starts(tuple(channels), mean.device), to_mean, to_var, mean.shape[1], epsilon,
            DISTANCE=DISTANCES[distance], STD=spread == "std", HAS_MARGINS=mean_margin is not None,
            DOUBLE=double(mean), BLOCK=BLOCK, **LAUNCH,
        )  # fmt: skip
    return to_mean, to_var


def _sides(moments: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    return tuple((m.shape[2], m.shape[3]) for m in moments)


@lru_cache(maxsize=64)
def _merge_table(sides: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """For each block of channels: (elements of earlier layers in one row of one group, splits, channels, first channel

    of the block in its layer, and in all layers). Made once, so that a captured graph finds it.
    """
    rows, before, packed = [], 0, 0
    for splits, channels in sides:
        rows += [(packed, splits, channels, first, before + first) for first in range(0, channels, BLOCK)]
        before, packed = before + channels, packed + 3 * splits * channels
    return torch.tensor(rows, dtype=torch.int64, device=device)


@lru_cache(maxsize=64)
def _starts(channels: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each layer begins among all channels, and where the last one ends."""
    return torch.tensor([0, *accumulate(channels)], dtype=torch.int64, device=device)


@triton.jit
def block_of(table_ptr, BLOCK: tl.constexpr):
    """What the table says of this program's block: where a part's moments lie, its sides, and the channels."""
    entry = table_ptr + tl.program_id(0) * 5
    base = tl.load(entry) * tl.num_programs(1)
    splits, channels = tl.load(entry + 1), tl.load(entry + 2)
    c = tl.arange(0, BLOCK)
    exists = tl.load(entry + 3) + c < channels
    first = base + tl.program_id(1) * splits * channels + tl.load(entry + 3) + c
    return first, tl.num_programs(1) * splits * channels, splits, channels, exists, tl.load(entry + 4) + c


@triton.jit
def _merge(packed_ptr, table_ptr, mean_ptr, var_ptr, total, correction, BLOCK: tl.constexpr):
    part, step, splits, channels, exists, out = block_of(table_ptr, BLOCK)
    base = tl.load(packed_ptr + part + step, mask=exists, other=0)
    count, mean, squares = tl.zeros_like(base), tl.zeros_like(base), tl.zeros_like(base)
    for _ in range(splits):
        n = tl.load(packed_ptr + part, mask=exists, other=1)
        apart = tl.load(packed_ptr + part + step, mask=exists, other=0) - base - mean
        squares += tl.load(packed_ptr + part + 2 * step, mask=exists, other=0) + apart * apart * (
            n * count / (n + count)
        )
        mean += apart * (n / (n + count))
        count += n
        part += channels
    out += tl.program_id(1).to(tl.int64) * total
    tl.store(mean_ptr + out, base + mean, mask=exists)
    tl.store(var_ptr + out, squares / tl.where(exists, count - correction, 1), mask=exists)


@triton.jit
def _merge_backward(
    to_mean_ptr, to_var_ptr, packed_ptr, mean_ptr, table_ptr, to_packed_ptr, total, correction, BLOCK: tl.constexpr
):  # fmt: skip
    first, step, splits, channels, exists, out = block_of(table_ptr, BLOCK)
    out += tl.program_id(1).to(tl.int64) * total
    mean = tl.load(mean_ptr + out, mask=exists, other=0)
    count, part = tl.zeros_like(mean), first
    for _ in range(splits):
        count += tl.load(packed_ptr + part, mask=exists, other=1)
        part += channels
    to_mean = tl.load(to_mean_ptr + out, mask=exists, other=0) / count
    to_squares = tl.load(to_var_ptr + out, mask=exists, other=0) / tl.where(exists, count - correction, 1)
    part = first
    for _ in range(splits):
        n = tl.load(packed_ptr + part, mask=exists, other=1)
        apart = tl.load(packed_ptr + part + step, mask=exists, other=0) - mean
        tl.store(to_packed_ptr + part, tl.zeros_like(mean), mask=exists)
        tl.store(to_packed_ptr + part + step, n * (to_mean + 2 * to_squares * apart), mask=exists)
        tl.store(to_packed_ptr + part + 2 * step, to_squares, mask=exists)
        part += channels


@triton.jit
def _align(
    mean_ptr, var_ptr, target_mean_ptr, target_var_ptr, mean_margin_ptr, spread_margin_ptr, starts_ptr,
    distances_ptr, norms_ptr, total, epsilon,
    DISTANCE: tl.constexpr, STD: tl.constexpr, HAS_MARGINS: tl.constexpr, DOUBLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    layer, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    begin, end = tl.load(starts_ptr + layer), tl.load(starts_ptr + layer + 1)
    dtype = tl.float64 if DOUBLE else tl.float32
    of_means, of_spreads = tl.zeros([BLOCK], dtype), tl.zeros([BLOCK], dtype)
    for first in range(begin, end, BLOCK):
        c = first + tl.arange(0, BLOCK)
        mean = tl.load(mean_ptr + sample * total + c, mask=c < end, other=0)
        var = tl.load(var_ptr + sample * total + c, mask=c < end, other=1)
        target_mean = tl.load(target_mean_ptr + c, mask=c < end, other=0)
        target_var = tl.load(target_var_ptr + c, mask=c < end, other=1)
        if DISTANCE == 2:
            ratio = (var + epsilon) / (target_var + epsilon)
            of_means += 0.5 * (mean - target_mean) * (mean - target_mean) / (target_var + epsilon)
            of_spreads += 0.5 * (ratio - 1 - tl.log(ratio))
        else:
            offset = mean - target_mean
            widening = spread_of(var, epsilon, STD) - spread_of(target_var, epsilon, STD)
            if HAS_MARGINS:
                offset = beyond(offset, tl.load(mean_margin_ptr + c, mask=c < end, other=0))
                widening = beyond(widening, tl.load(spread_margin_ptr + c, mask=c < end, other=0))
            of_means += offset * offset
            of_spreads += widening * widening
    mean_part, spread_part = tl.sum(of_means), tl.sum(of_spreads)
    if DISTANCE == 1:
        mean_part, spread_part = tl.sqrt(mean_part), tl.sqrt(spread_part)
    at = sample * tl.num_programs(0) + layer
    tl.store(distances_ptr + at, mean_part + spread_part)
    tl.store(norms_ptr + at, mean_part)
    tl.store(norms_ptr + tl.num_programs(0) * tl.num_programs(1) + at, spread_part)


@triton.jit
def _align_backward(
    to_distances_ptr, sample_stride, layer_stride, norms_ptr, mean_ptr, var_ptr, target_mean_ptr, target_var_ptr,
    mean_margin_ptr, spread_margin_ptr, starts_ptr, to_mean_ptr, to_var_ptr, total, epsilon,
    DISTANCE: tl.constexpr, STD: tl.constexpr, HAS_MARGINS: tl.constexpr, DOUBLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    layer, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    begin, end = tl.load(starts_ptr + layer), tl.load(starts_ptr + layer + 1)
    at = sample * tl.num_programs(0) + layer
    weight = tl.load(to_distances_ptr + sample * sample_stride + layer * layer_stride)
    mean_weight, spread_weight = 2 * weight, 2 * weight
    if DISTANCE == 1:  # a norm's gradient; zero where the norm is
        mean_norm = tl.load(norms_ptr + at)
        spread_norm = tl.load(norms_ptr + tl.num_programs(0) * tl.num_programs(1) + at)
        mean_weight = tl.where(mean_norm > 0, weight / tl.where(mean_norm > 0, mean_norm, 1), 0)
        spread_weight = tl.where(spread_norm > 0, weight / tl.where(spread_norm > 0, spread_norm, 1), 0)
    for first in range(begin, end, BLOCK):
        c = first + tl.arange(0, BLOCK)
        mean = tl.load(mean_ptr + sample * total + c, mask=c < end, other=0)
        var = tl.load(var_ptr + sample * total + c, mask=c < end, other=1)
        target_mean = tl.load(target_mean_ptr + c, mask=c < end, other=0)
        target_var = tl.load(target_var_ptr + c, mask=c < end, other=1)
        if DISTANCE == 2:
            to_mean = weight * (mean - target_mean) / (target_var + epsilon)
            to_var = 0.5 * weight * (1 / (target_var + epsilon) - 1 / (var + epsilon))
        else:
            offset = mean - target_mean
            widening = spread_of(var, epsilon, STD) - spread_of(target_var, epsilon, STD)
            if HAS_MARGINS:
                offset = beyond(offset, tl.load(mean_margin_ptr + c, mask=c < end, other=0))
                widening = beyond(widening, tl.load(spread_margin_ptr + c, mask=c < end, other=0))
            to_mean = mean_weight * offset
            to_var = spread_weight * widening
            if STD:
                to_var = to_var * 0.5 / spread_of(var, epsilon, STD)
        tl.store(to_mean_ptr + sample * total + c, to_mean, mask=c < end)
        tl.store(to_var_ptr + sample * total + c, to_var, mask=c < end)


@triton.jit
def spread_of(var, epsilon, STD: tl.constexpr):
    """The variance, or the standard deviation sqrt(var + epsilon)."""
    if STD:
        return tl.sqrt(var + epsilon)
    else:
        return var


@triton.jit
def beyond(difference, margin):
    """What of a difference lies beyond its margin, zero inside."""
    return tl.where(difference > 0, 1, -1) * tl.maximum(tl.abs(difference) - margin, 0)

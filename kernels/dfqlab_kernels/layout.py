"""How a tensor lies in memory, and how programs share it: both follow from its shape alone, never from the machine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 2048  # elements that one program holds at a time
PROGRAMS = 512  # aimed at when channels are reduced: several for each multiprocessor of any GPU of today


@dataclass(frozen=True)
class Layout:
    """A dense tensor as `groups` blocks of (outer, channels, inner), innermost last.

    Element (g, o, c, i) lies at `((g * outer + o) * channels + c) * inner + i`. A contiguous (n, c, h, w) tensor has
    outer n and inner h·w; in channels_last it has outer n·h·w and inner 1. Per tensor there is one channel.
    """

    groups: int
    outer: int
    channels: int
    inner: int

    @property
    def numel(self) -> int:
        """Elements of all groups."""
        return self.groups * self.outer * self.channels * self.inner


@dataclass(frozen=True)
class Tiling:
    """Which program works on what: a tile at a time, and a chunk of one block of channels altogether.

    Attributes:
        outer, channels, inner: sides of a tile, powers of two.
        chunk_outer, chunk_inner: how far one program walks, multiples of the tile's sides.
        splits_outer, splits_inner: how many chunks the outer and inner dimension have.
        channel_blocks: blocks of channels.
    """

    outer: int
    channels: int
    inner: int
    chunk_outer: int
    chunk_inner: int
    splits_outer: int
    splits_inner: int
    channel_blocks: int

    @property
    def splits(self) -> int:
        """Chunks of one channel in one group."""
        return self.splits_outer * self.splits_inner

    @property
    def tile(self) -> int:
        """Elements of a tile."""
        return self.outer * self.channels * self.inner

    def programs(self, layout: Layout) -> int:
        """How many programs cover the tensor."""
        return layout.groups * self.splits * self.channel_blocks


def elementwise_layout(x: Tensor, axis: int | None) -> tuple[Tensor, Layout]:
    """The tensor, copied only if it is not dense, and its layout with channels along `axis` (None: one channel)."""
    x = dense(x)
    if axis is None:
        return x, Layout(1, 1, 1, x.numel())
    order = _memory_order(x)
    position = order.index(axis % x.dim()) if axis % x.dim() in order else 0
    outer = math.prod(x.shape[d] for d in order[:position])
    return x, Layout(1, outer, x.shape[axis], x.numel() // max(outer * x.shape[axis], 1))


def channel_layout(x: Tensor, *, per_sample: bool) -> tuple[Tensor, Layout]:
    """The tensor (n, c, ...), copied only if it is neither contiguous nor channels_last, and its layout."""
    n, c = x.shape[:2]
    spatial = math.prod(x.shape[2:])
    groups, outer = (n, 1) if per_sample else (1, n)
    if _is_channels_last(x):
        return x, Layout(groups, outer * spatial, c, 1)
    return x.contiguous(), Layout(groups, outer, c, spatial)


def elementwise_tiling(layout: Layout) -> Tiling:
    """A tile for each program."""
    outer, channels, inner = _tile(layout, smallest=32)
    return _tiling(layout, (outer, channels, inner), splits=max(layout.numel, 1))


def reduction_tiling(layout: Layout) -> Tiling:
    """Chunks of channels, as many as keep a GPU busy; a chunk is one program's, so its sum has one order."""
    outer, channels, inner = _tile(layout, smallest=1)
    blocks = layout.groups * _ceil(layout.channels, channels)
    return _tiling(layout, (outer, channels, inner), splits=_ceil(PROGRAMS, max(blocks, 1)))


def is_dense(x: Tensor) -> bool:
    """Whether the elements fill a stretch of memory without gap or overlap, in any order of dimensions."""
    expected = 1
    for d in reversed(_memory_order(x)):
        if x.stride(d) != expected:
            return False
        expected *= x.shape[d]
    return True


def dense(x: Tensor) -> Tensor:
    """The tensor itself, or a dense copy with its dimensions in the same order."""
    return x if is_dense(x) else torch.empty_like(x).copy_(x)


def laid_out(x: Tensor, stride: Sequence[int]) -> Tensor:
    """The tensor itself, or a copy with these strides."""
    differ = any(size > 1 and a != b for size, a, b in zip(x.shape, x.stride(), stride, strict=True))
    return x.new_empty_strided(x.shape, stride).copy_(x) if differ else x


def _memory_order(x: Tensor) -> list[int]:
    """Dimensions of more than one element, the one with the largest stride first."""
    stride = x.stride()
    return sorted((d for d in range(x.dim()) if x.shape[d] != 1), key=lambda d: stride[d], reverse=True)


def _is_channels_last(x: Tensor) -> bool:
    order = [0, *range(2, x.dim()), 1]
    return x.shape[1] > 1 and x.permute(order).is_contiguous()


def _tile(layout: Layout, *, smallest: int) -> tuple[int, int, int]:
    inner = _power_of_two(layout.inner, TILE)
    channels = _power_of_two(layout.channels, max(64 // inner, 1) if layout.inner > 1 else 128)
    outer = _power_of_two(layout.outer, max(TILE // (inner * channels), 1))
    return outer, channels, max(inner, smallest // (outer * channels))


def _tiling(layout: Layout, tile: tuple[int, int, int], splits: int) -> Tiling:
    outer, channels, inner = tile
    tiles_outer, tiles_inner = max(_ceil(layout.outer, outer), 1), max(_ceil(layout.inner, inner), 1)
    chunk_outer = _ceil(tiles_outer, min(splits, tiles_outer)) * outer
    splits_outer = _ceil(tiles_outer * outer, chunk_outer)
    chunk_inner = _ceil(tiles_inner, min(_ceil(splits, splits_outer), tiles_inner)) * inner
    return Tiling(
        outer, channels, inner, chunk_outer, chunk_inner,
        splits_outer, _ceil(tiles_inner * inner, chunk_inner), _ceil(layout.channels, channels),
    )  # fmt: skip


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _power_of_two(n: int, most: int) -> int:
    """The smallest power of two that is not less than n, or `most`, itself one, where that is smaller.

    By comparisons alone, so that a compiler to which n is a symbol learns no more than its range.
    """
    power = 1
    while power < most and power < n:
        power *= 2
    return power

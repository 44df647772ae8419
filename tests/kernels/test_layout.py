"""How a tensor lies in memory and is shared among programs: every element has one place, and one program."""

from collections import Counter
from itertools import product

import pytest
import torch
from torch import Tensor

from dfqlab_kernels import layout
from dfqlab_kernels.layout import (
    Layout,
    Tiling,
    channel_layout,
    dense,
    elementwise_layout,
    elementwise_tiling,
    is_dense,
    laid_out,
    reduction_tiling,
)

LAYOUTS = [Layout(*sides) for sides in product((1, 3), (1, 5, 130), (1, 7, 300), (1, 49, 3000))]


def numbered(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


TENSORS = {
    "contiguous": numbered(3, 5, 7),
    "channels_last": numbered(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "transposed": numbered(3, 5, 7).transpose(0, 2),
    "permuted": numbered(3, 2, 4, 2, 3).permute(3, 0, 4, 1, 2),
    "a side of one": numbered(3, 1, 7),
    "vector": numbered(9),
}


def channel_of_every_element(lies: Layout) -> Tensor:
    """By its place in memory, as the docstring of `Layout` says."""
    return torch.arange(lies.numel) // lies.inner % lies.channels


@pytest.mark.parametrize("name", TENSORS)
def test_an_element_lies_in_the_channel_of_its_index(name: str) -> None:
    x = TENSORS[name]
    for axis in range(-x.dim(), x.dim()):
        same, lies = elementwise_layout(x, axis)
        assert same is x
        assert (lies.numel, lies.channels) == (x.numel(), x.shape[axis])
        assert lies.outer * lies.inner * lies.channels == x.numel()
        memory = x.as_strided((x.numel(),), (1,))
        index = numbered(x.shape[axis]).reshape([-1 if d == axis % x.dim() else 1 for d in range(x.dim())])
        expected = torch.empty_like(memory)
        expected[x.flatten()] = index.expand_as(x).flatten()  # x numbers its own elements
        assert torch.equal(channel_of_every_element(lies), expected[memory])


def test_per_tensor_there_is_one_channel() -> None:
    assert elementwise_layout(TENSORS["permuted"], None)[1] == Layout(1, 1, 1, 144)


@pytest.mark.parametrize(
    ("per_sample", "nchw", "nhwc"),
    [(False, Layout(1, 2, 3, 20), Layout(1, 40, 3, 1)), (True, Layout(2, 1, 3, 20), Layout(2, 20, 3, 1))],
)
def test_samples_are_groups_or_belong_to_the_outer_side(per_sample: bool, nchw: Layout, nhwc: Layout) -> None:
    x = numbered(2, 3, 4, 5)
    assert channel_layout(x, per_sample=per_sample)[1] == nchw
    last = x.to(memory_format=torch.channels_last)
    same, lies = channel_layout(last, per_sample=per_sample)
    assert same is last
    assert lies == nhwc
    copy, lies = channel_layout(x.transpose(2, 3), per_sample=per_sample)
    assert copy.is_contiguous()
    assert lies == nchw


def places(lies: Layout, tiling: Tiling) -> Counter[tuple[int, int, int, int]]:
    """How often each (group, outer, channel, inner) is met when every program walks its chunk tile by tile."""
    met: Counter[tuple[int, int, int, int]] = Counter()
    for program in range(tiling.programs(lies)):
        rest, block = divmod(program, tiling.channel_blocks)
        rest, chunk_i = divmod(rest, tiling.splits_inner)
        group, chunk_o = divmod(rest, tiling.splits_outer)
        for o in range(chunk_o * tiling.chunk_outer, min((chunk_o + 1) * tiling.chunk_outer, lies.outer)):
            for c in range(block * tiling.channels, min((block + 1) * tiling.channels, lies.channels)):
                for i in range(chunk_i * tiling.chunk_inner, min((chunk_i + 1) * tiling.chunk_inner, lies.inner)):
                    met[group, o, c, i] += 1
    return met


@pytest.mark.parametrize("tiled", [elementwise_tiling, reduction_tiling])
@pytest.mark.parametrize("sides", [(1, 1, 1, 1), (1, 1, 1, 301), (1, 37, 5, 9), (3, 9, 70, 1), (2, 3, 2, 130)])
def test_every_element_has_one_program(sides: tuple[int, ...], tiled: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "TILE", 64)
    monkeypatch.setattr(layout, "PROGRAMS", 7)
    lies = Layout(*sides)
    met = places(lies, tiled(lies))  # type: ignore[operator]
    assert met == Counter(product(*(range(side) for side in sides)))


@pytest.mark.parametrize("lies", LAYOUTS, ids=str)
def test_a_tile_is_a_power_of_two_of_no_more_than_2048_and_not_twice_as_large_as_needed(lies: Layout) -> None:
    for tiling, smallest in ((elementwise_tiling(lies), 32), (reduction_tiling(lies), 1)):
        for side, needed in zip(
            (tiling.outer, tiling.channels, tiling.inner), (lies.outer, lies.channels, lies.inner), strict=True
        ):
            assert side.bit_count() == 1
            assert side < 2 * needed or tiling.tile == smallest
        assert smallest <= tiling.tile <= 2048
        assert tiling.chunk_outer % tiling.outer == 0
        assert tiling.chunk_inner % tiling.inner == 0


@pytest.mark.parametrize("lies", LAYOUTS, ids=str)
def test_a_program_of_an_elementwise_op_has_one_tile(lies: Layout) -> None:
    tiling = elementwise_tiling(lies)
    assert (tiling.chunk_outer, tiling.chunk_inner) == (tiling.outer, tiling.inner)


@pytest.mark.parametrize(
    "lies", [*LAYOUTS, Layout(1, 1, 1, 2**31), Layout(1, 256, 64, 56 * 56), Layout(1, 2**20, 64, 1)]
)
def test_a_reduction_keeps_a_gpu_busy_and_every_chunk_has_elements(lies: Layout) -> None:
    tiling = reduction_tiling(lies)
    blocks = lies.groups * tiling.channel_blocks
    tiles = -(-lies.outer // tiling.outer) * -(-lies.inner // tiling.inner)
    assert tiling.programs(lies) >= min(blocks * tiles, layout.PROGRAMS) / 2
    assert tiling.programs(lies) <= max(2 * layout.PROGRAMS, blocks)
    assert (tiling.splits_outer - 1) * tiling.chunk_outer < lies.outer
    assert (tiling.splits_inner - 1) * tiling.chunk_inner < lies.inner


@pytest.mark.parametrize("lies", [Layout(1, 3, 0, 5), Layout(0, 1, 3, 5), Layout(1, 0, 3, 5), Layout(1, 1, 1, 0)])
def test_a_tensor_without_elements_has_a_tiling(lies: Layout) -> None:
    for tiling in (elementwise_tiling(lies), reduction_tiling(lies)):
        assert tiling.tile > 0
        assert tiling.splits > 0


@pytest.mark.parametrize("name", TENSORS)
def test_what_is_dense_stays_and_what_is_not_is_copied_in_the_same_order(name: str) -> None:
    x = TENSORS[name]
    assert is_dense(x)
    assert dense(x) is x
    gaps = torch.stack([x, x], -1)[..., 0]
    assert not is_dense(gaps)
    assert torch.equal(dense(gaps), x)
    assert is_dense(dense(gaps))


def test_neither_a_gap_nor_an_overlap_is_dense() -> None:
    x = numbered(4, 6)
    for view in (x[:, ::2], x[:, :5], x[:1].expand(4, 6), x.as_strided((4, 6), (3, 1))):
        assert not is_dense(view)
        assert torch.equal(dense(view), view)
        assert is_dense(dense(view))


def test_a_gradient_is_brought_to_strides_and_left_alone_where_it_has_them() -> None:
    x = numbered(2, 3, 4, 5)
    last = x.to(memory_format=torch.channels_last)
    assert laid_out(x, x.stride()) is x
    moved = laid_out(x, last.stride())
    assert torch.equal(moved, x)
    assert moved.stride() == last.stride()
    assert laid_out(torch.ones(()).expand(2, 3), (1, 2)).stride() == (1, 2)

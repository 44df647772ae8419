"""Every way a tensor can lie in memory: the numbers of the definition, and the memory format of what came."""

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from dfqlab_kernels import backend, fake_quantize, layout, learned_step_quantize
from dfqlab_kernels.layout import Layout, elementwise_tiling
from dfqlab_kernels.programs.tiles import place

LAYOUTS = [
    "contiguous", "channels_last", "transposed", "every second", "expanded", "expanded inside", "offset", "permuted",
    "strange sizes of one", "no element", "no channel", "scalar", "vector",
]  # fmt: skip


def random(*shape: int) -> Tensor:
    return 8 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def lying(name: str) -> Tensor:
    """A tensor in memory as the name says; no side is a multiple of a tile's."""
    match name:
        case "channels_last":
            return random(2, 6, 5, 3).to(memory_format=torch.channels_last)
        case "transposed":
            return random(4, 3, 11).transpose(1, 2)
        case "every second":
            return random(3, 10, 7)[:, ::2]
        case "expanded":
            return random(1, 6, 7).expand(3, 6, 7)
        case "expanded inside":
            return random(3, 6, 1, 5).expand(3, 6, 4, 5)
        case "offset":
            return random(3 * 5 * 7 + 3)[3:].reshape(3, 5, 7)
        case "permuted":
            return random(3, 2, 4, 2, 3).permute(3, 0, 4, 1, 2)
        case "strange sizes of one":
            return random(5, 7).as_strided((1, 5, 1, 7), (1, 7, 100, 1))  # contiguous to torch
        case "no element":
            return random(0, 5, 3)
        case "no channel":
            return random(3, 0, 5)
        case "scalar":
            return random()
        case "vector":
            return random(71)
        case _:
            return random(3, 5, 7)


def axes(x: Tensor) -> list[int | None]:
    return [None, *range(x.dim())]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "TILE", 64)
    monkeypatch.setattr(layout, "PROGRAMS", 4)


def qparams(x: Tensor, axis: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    count = 1 if axis is None else x.shape[axis]
    scale, point = 0.3 + torch.rand(count, generator=generator), 4 * torch.randn(count, generator=generator)
    return scale.to(device), point.to(device)


def test_the_layouts_are_what_their_names_say() -> None:
    contiguous = {name for name in LAYOUTS if lying(name).is_contiguous()}
    assert contiguous == {
        "contiguous",
        "strange sizes of one",
        "offset",
        "no element",
        "no channel",
        "scalar",
        "vector",
    }
    assert not layout.is_dense(lying("every second"))
    assert not layout.is_dense(lying("expanded inside"))
    assert layout.is_dense(lying("permuted"))
    assert lying("offset").storage_offset() == 3


@pytest.mark.parametrize("save", ["mask", "input"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_fake_quantize(name: str, save: Any, device: torch.device) -> None:
    x = lying(name).to(device)
    dy = random(*x.shape).to(device)  # contiguous, whatever x is
    for axis in axes(x):
        scale, point = qparams(x, axis, device)
        results = []
        for chosen in ("triton", "reference"):
            leaf = x.detach().requires_grad_()
            with backend(chosen):  # type: ignore[arg-type]
                y = fake_quantize(leaf, scale, point.round(), quant_min=-8, quant_max=7, axis=axis, save=save)
            y.backward(dy)
            assert leaf.grad is not None
            results.append((y.detach(), leaf.grad))
        assert results[0][0].stride() == torch.empty_like(x).stride()
        for found, expected in zip(*results, strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("name", LAYOUTS)
def test_learned_step_quantize(name: str, device: torch.device) -> None:
    x = lying(name).to(device)
    dy = random(*x.shape).to(device)
    for axis in axes(x):
        results = []
        for chosen in ("triton", "reference"):
            leaves = [t.detach().requires_grad_() for t in (x, *qparams(x, axis, device))]
            with backend(chosen):  # type: ignore[arg-type]
                y = learned_step_quantize(*leaves, quant_min=-8, quant_max=7, axis=axis)
            y.backward(dy)
            results.append((y.detach(), *(leaf.grad for leaf in leaves)))
        assert results[0][0].stride() == torch.empty_like(x).stride()
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@triton.jit
def _place(
    offsets_ptr, program, outer, channels, inner, chunk_outer, chunk_inner, splits_outer, splits_inner,
    TILE_OUTER: tl.constexpr, TILE_CHANNELS: tl.constexpr, TILE_INNER: tl.constexpr,
):  # fmt: skip
    offsets, exists, _ = place(
        program, outer, channels, inner, chunk_outer, chunk_inner, splits_outer, splits_inner,
        TILE_OUTER, TILE_CHANNELS, TILE_INNER,
    )  # fmt: skip
    flat = tl.arange(0, TILE_OUTER * TILE_CHANNELS * TILE_INNER)
    tl.store(offsets_ptr + flat, tl.reshape(tl.where(exists, offsets, -1), flat.shape))


@pytest.mark.parametrize(
    "huge",
    [Layout(1, 1, 1, 2**33 + 5), Layout(1, 2**31 + 5, 3, 1), Layout(1, 5, 3, 2**31 + 7), Layout(1, 2**22, 3, 999)],
)
def test_the_last_program_of_a_tensor_of_billions_ends_at_its_last_element(
    huge: Layout, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No memory is needed to ask a program for its place, and 32 bits are not enough for it."""
    monkeypatch.undo()  # tiles of their true size
    tiling = elementwise_tiling(huge)
    offsets = torch.empty(tiling.tile, dtype=torch.int64, device=device)
    programs = tiling.programs(huge)
    assert programs < 2**31
    ends = []
    for program in (0, programs - 1):
        _place[(1,)](
            offsets, program, huge.outer, huge.channels, huge.inner, tiling.chunk_outer, tiling.chunk_inner,
            tiling.splits_outer, tiling.splits_inner,
            TILE_OUTER=tiling.outer, TILE_CHANNELS=tiling.channels, TILE_INNER=tiling.inner,
        )  # fmt: skip
        shown = offsets[offsets >= 0]
        assert len(shown.unique()) == len(shown) > 0
        ends += [int(shown.min()), int(shown.max())]
    assert ends[0] == 0
    assert ends[-1] == huge.numel - 1


@pytest.mark.parametrize("op", [fake_quantize, learned_step_quantize])
def test_scales_and_zero_points_may_have_any_strides(op: Any, device: torch.device) -> None:
    x = random(3, 4, 5).to(device)
    wide = torch.tensor([0.3, 9.0, 0.5, 9.0, 0.7, 9.0, 1.1, 9.0], device=device)
    for scale, point in ((wide[::2], wide[1::2].round()), (wide[:1].expand(4), wide[1:2].round().expand(4))):
        results = []
        for name in ("triton", "reference"):
            with backend(name):  # type: ignore[arg-type]
                leaf = x.clone().requires_grad_()
                y = op(leaf, scale, point, quant_min=-8, quant_max=15, axis=1)
                results.append((y, *torch.autograd.grad(y.sum(), leaf)))
        for found, expected in zip(*results, strict=True):
            assert torch.equal(found, expected)

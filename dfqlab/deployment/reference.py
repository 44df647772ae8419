"""What integer operations are, in numpy: no torch, no runtime. The certificate holds a runtime to this.

Products of codes are summed exactly: as float64, whose 53 bits hold any sum of fewer than 2^37 products of two bytes,
and then as int64. From there on, arithmetic is what runtimes document: the accumulator and the multiplier as float32,
their product rounded half to even, the zero point added, saturated to the container.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[Any]
"""uint8 or int8."""
_CHUNK_BYTES = 2**28


@dataclass(frozen=True)
class Affine:
    """`real = (code - zero_point) * scale`; one scale, or one for each output channel."""

    scale: NDArray[np.float32]
    zero_point: NDArray[np.integer]


@dataclass(frozen=True)
class Window:
    """Where a convolution or a pooling looks; pairs are (height, width), pads (top, left, bottom, right).

    With `ceil`, a last window that reaches over the bottom or right edge counts too, if it starts inside.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    ceil: bool = False


def conv(
    x: Codes,
    x_grid: Affine,
    weight: NDArray[np.int8],
    weight_grid: Affine,
    y_grid: Affine,
    bias: NDArray[np.int32] | None,
    window: Window,
    groups: int = 1,
) -> Codes:
    """A convolution of codes (n, c, h, w) with codes (out, c / groups, kh, kw), as codes (n, out, h', w')."""
    per_image = 8 * x.shape[1] * window.kernel[0] * window.kernel[1] * x.shape[2] * x.shape[3]
    size = max(1, _CHUNK_BYTES // max(per_image, 1))
    accumulators = [
        _accumulate(x[i : i + size], x_grid, weight, weight_grid, window, groups) for i in range(0, len(x), size)
    ]
    accumulator = np.concatenate(accumulators)
    if bias is not None:
        accumulator += bias.astype(np.int64).reshape(1, -1, 1, 1)
    multiplier = (x_grid.scale * weight_grid.scale / y_grid.scale).astype(np.float32)
    return requantize(accumulator, multiplier.reshape(1, -1, 1, 1), y_grid.zero_point)


def gemm_accumulator(
    x: Codes, x_grid: Affine, weight: NDArray[np.int8], weight_grid: Affine, bias: NDArray[np.int32] | None
) -> NDArray[np.int64]:
    """Codes (n, k) times codes (out, k) plus bias, as int64 (n, out)."""
    left = x.astype(np.float64) - x_grid.zero_point
    right = weight.astype(np.float64) - weight_grid.zero_point.reshape(-1, 1)
    total = (left @ right.T).astype(np.int64)
    return total if bias is None else total + bias


def requantize(
    accumulator: NDArray[np.int64], multiplier: NDArray[np.float32], zero_point: NDArray[np.integer]
) -> Codes:
    """The accumulator on the grid of the output: float32 product, half to even, zero point, saturate."""
    scaled = np.rint(accumulator.astype(np.float32) * multiplier).astype(np.int64) + int(zero_point)
    limits = np.iinfo(zero_point.dtype)
    saturated: Codes = np.clip(scaled, limits.min, limits.max).astype(zero_point.dtype)
    return saturated


def dequantize(codes: Codes, grid: Affine) -> NDArray[np.float64]:
    """Codes as reals, in float64."""
    return (codes.astype(np.float64) - int(grid.zero_point)) * np.float64(grid.scale)


def quantize(reals: NDArray[np.floating], grid: Affine) -> Codes:
    """Reals as codes, in the precision that they have: half to even, saturated."""
    limits = np.iinfo(grid.zero_point.dtype)
    codes = np.rint(reals / grid.scale.astype(reals.dtype)) + int(grid.zero_point)
    saturated: Codes = np.clip(codes, limits.min, limits.max).astype(grid.zero_point.dtype)
    return saturated


def change_grid(codes: Codes, grid: Affine, new: Affine) -> Codes:
    """The same reals on another grid: DequantizeLinear, QuantizeLinear, in float32 as ONNX defines them."""
    return quantize((codes.astype(np.int32) - int(grid.zero_point)).astype(np.float32) * grid.scale, new)


def average_pool(x: Codes, x_grid: Affine, y_grid: Affine, window: Window | None, count_pads: bool = False) -> Codes:
    """The mean of each window, or of the whole plane where there is none.

    A mean of codes often lies just between two, and then the arithmetic decides. That of a plane is a convolution's: an
    exact sum, one multiplier. That of a window is DequantizeLinear, AveragePool, QuantizeLinear, in float32 as ONNX
    defines them, summed row by row. Pads are zeros, and count as elements only with `count_pads`; what lies beyond
    them never counts.
    """
    centred = x.astype(np.int64) - int(x_grid.zero_point)
    if window is None:
        multiplier = np.asarray(x_grid.scale / (y_grid.scale * np.float32(x.shape[2] * x.shape[3])))
        return requantize(centred.sum((2, 3), keepdims=True), multiplier, y_grid.zero_point)
    elements = _windows(centred.astype(np.float32) * x_grid.scale, window)
    counts = _windows(np.ones((1, 1, *x.shape[2:]), np.float32), window, fill=float(count_pads)).sum((-2, -1))
    sums = np.zeros(elements.shape[:4], np.float32)
    for row, column in np.ndindex(window.kernel):
        sums += elements[..., row, column]
    return quantize(sums / counts, y_grid)


def _accumulate(
    x: Codes, x_grid: Affine, weight: NDArray[np.int8], weight_grid: Affine, window: Window, groups: int
) -> NDArray[np.int64]:
    left = _windows(x.astype(np.float64) - int(x_grid.zero_point), window)
    n, _, height, width = left.shape[:4]
    right = weight.astype(np.float64) - weight_grid.zero_point.reshape(-1, 1, 1, 1)
    out = len(weight) // groups
    left = left.reshape(n, groups, -1, height, width, *window.kernel).transpose(1, 0, 3, 4, 2, 5, 6)
    columns = left.reshape(groups, n * height * width, -1)
    rows = right.reshape(groups, out, -1).transpose(0, 2, 1)
    product = (columns @ rows).reshape(groups, n, height, width, out)
    return product.transpose(1, 0, 4, 2, 3).reshape(n, groups * out, height, width).astype(np.int64)


def _windows(x: NDArray[Any], window: Window, fill: float = 0.0) -> NDArray[Any]:
    """(n, c, h, w) to (n, c, h', w', kh, kw); pads are filled, what a last window reaches beyond them is 0."""
    top, left, bottom, right = window.pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    reach = tuple((k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True))
    if window.ceil:
        ends = tuple(size + before for size, before in zip(x.shape[2:], (top, left), strict=True))
        beyond = [_beyond(*axis) for axis in zip(padded.shape[2:], reach, window.strides, ends, strict=True)]
        padded = np.pad(padded, ((0, 0), (0, 0), *((0, n) for n in beyond)))
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    (sy, sx), (dy, dx) = window.strides, window.dilations
    return views[:, :, ::sy, ::sx, ::dy, ::dx]


def _beyond(size: int, reach: int, stride: int, end: int) -> int:
    """How far the last window of an axis reaches over it, if it starts before `end`."""
    steps = -(-(size - reach) // stride)
    return max(0, steps * stride + reach - size) if steps * stride < end else 0


def as_pair(values: Sequence[int]) -> tuple[int, int]:
    """Two integers of an ONNX attribute."""
    first, second = values
    return int(first), int(second)

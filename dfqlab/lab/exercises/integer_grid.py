"""Lesson 01: from a number to a code and back, and the code of zero."""

import torch
from torch import Tensor

import dfqlab_kernels
from dfqlab.compression.quantizers import affine_parameters
from dfqlab.compression.spec import Grid
from dfqlab.lab.checks import Exercise, Hint


def quantize_dequantize(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    """x on the grid, and back."""
    return dfqlab_kernels.fake_quantize(
        x, torch.tensor([scale]), torch.tensor([zero_point]), quant_min=quant_min, quant_max=quant_max
    )


def zero_point(low: Tensor, high: Tensor, bits: int) -> Tensor:
    """The code of 0.0 on the affine grid of each range."""
    grid = Grid(bits, symmetric=False, granularity="per_tensor")
    pairs = zip(low.tolist(), high.tolist(), strict=True)
    return torch.tensor([float(affine_parameters(a, b, grid).zero_point) for a, b in pairs])


def _without_clipping(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    return torch.round(x / scale) * scale


def _cutting(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    codes = (torch.trunc(x / scale) + zero_point).clamp(quant_min, quant_max)
    return (codes - zero_point) * scale


def _staying_codes(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    return (torch.round(x / scale) + zero_point).clamp(quant_min, quant_max)


def _zero_point_first(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    return (torch.round(x / scale + zero_point).clamp(quant_min, quant_max) - zero_point) * scale


def _without_zero_inside(low: Tensor, high: Tensor, bits: int) -> Tensor:
    return torch.round(-low / ((high - low) / (2.0**bits - 1)))


def _unrounded(low: Tensor, high: Tensor, bits: int) -> Tensor:
    low, high = low.clamp(max=0), high.clamp(min=0)
    return -low / ((high - low) / (2.0**bits - 1))


def _wrong_sign(low: Tensor, high: Tensor, bits: int) -> Tensor:
    low, high = low.clamp(max=0), high.clamp(min=0)
    return torch.round(low / ((high - low) / (2.0**bits - 1)))


_X = torch.tensor([-2.0, -0.75, -0.25, 0.0, 0.25, 0.8, 1.3, 9.0])

EXERCISES = (
    Exercise(
        id="01.quantize_dequantize",
        answer=quantize_dequantize,
        cases=((_X, 0.5, 0, -2, 1), (_X, 0.5, 3, 0, 7), (_X.reshape(2, 4) * 3, 0.11, 128, 0, 255)),
        drawn=("x",),
        hints=(
            Hint(
                "Numbers outside the grid must end at its ends: clamp the code to quant_min..quant_max.",
                _without_clipping,
            ),
            Hint(
                "Round to the nearest code with torch.round, a half to the even one; int() and trunc() cut.",
                _cutting,
            ),
            Hint(
                "Return real numbers, not their codes: (code - zero_point) * scale brings a code back.", _staying_codes
            ),
            Hint(
                "Round x / scale first and add zero_point after: with an odd one a half goes the other way.",
                _zero_point_first,
            ),
        ),
        library="dfqlab_kernels.fake_quantize",
    ),
    Exercise(
        id="01.zero_point",
        answer=zero_point,
        cases=(
            # No zero point lies near a half, which float32 and float64 would round to different codes.
            (torch.tensor([-1.0, 0.0, -3.0, 0.5, -4.0]), torch.tensor([1.2, 6.0, 1.0, 2.0, -1.0]), 4),
            (torch.tensor([-0.7, 0.2]), torch.tensor([2.5, 0.9]), 8),
        ),
        drawn=("low", "high"),
        hints=(
            Hint(
                "The range must contain 0 before anything is computed: low is at most 0, high at least 0.",
                _without_zero_inside,
            ),
            Hint("A zero point is a code, a whole number: round it.", _unrounded),
            Hint("Code 0 stands for low, and 0.0 lies -low above it: mind the sign.", _wrong_sign),
        ),
        library="dfqlab.compression.quantizers.affine_parameters",
    ),
)

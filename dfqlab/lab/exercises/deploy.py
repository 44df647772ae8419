"""Lesson 13: from a sum of products to an output code, and the lower end of an interval."""

import numpy as np
import torch
from torch import Tensor

from dfqlab.deployment import reference
from dfqlab.lab.checks import Exercise, Hint
from dfqlab.measures import wilson

_Z = 1.96


def requantize(accumulator: Tensor, multiplier: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    """The code of each sum on the grid of the output, as float32."""
    codes = reference.requantize(
        accumulator.numpy(), np.array([multiplier], np.float32), np.asarray(zero_point, np.uint8)
    )
    return torch.from_numpy(codes.clip(quant_min, quant_max)).float()


def wilson_low(right: Tensor, images: Tensor) -> Tensor:
    """The lower end of Wilson's 95 % interval for each share right / images."""
    pairs = zip(right.tolist(), images.tolist(), strict=True)
    return torch.tensor([wilson(int(k), int(n)).low for k, n in pairs])


def _cutting(accumulator: Tensor, multiplier: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    return (torch.trunc(accumulator * multiplier) + zero_point).clamp(quant_min, quant_max)


def _half_up(accumulator: Tensor, multiplier: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    return (torch.floor(accumulator * multiplier + 0.5) + zero_point).clamp(quant_min, quant_max)


def _zero_point_first(
    accumulator: Tensor, multiplier: float, zero_point: int, quant_min: int, quant_max: int
) -> Tensor:
    return torch.round(accumulator * multiplier + zero_point).clamp(quant_min, quant_max)


def _clipped_first(accumulator: Tensor, multiplier: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    return torch.round(accumulator * multiplier).clamp(quant_min, quant_max) + zero_point


def _without_clip(accumulator: Tensor, multiplier: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    return torch.round(accumulator * multiplier) + zero_point


def _without_zero_point(
    accumulator: Tensor, multiplier: float, zero_point: int, quant_min: int, quant_max: int
) -> Tensor:
    return torch.round(accumulator * multiplier).clamp(quant_min, quant_max)


def _around_the_share(right: Tensor, images: Tensor) -> Tensor:
    share = right / images
    return share - _Z * (share * (1 - share) / images).sqrt()


def _upper_end(right: Tensor, images: Tensor) -> Tensor:
    return torch.tensor([wilson(int(k), int(n)).high for k, n in zip(right.tolist(), images.tolist(), strict=True)])


def _not_divided(right: Tensor, images: Tensor) -> Tensor:
    return wilson_low(right, images) * (1 + _Z**2 / images)


def _one_standard_error(right: Tensor, images: Tensor) -> Tensor:
    share = right / images
    return (share + 1 / (2 * images) - (share * (1 - share) / images + 1 / (4 * images**2)).sqrt()) / (1 + 1 / images)


def _half_without_root(right: Tensor, images: Tensor) -> Tensor:
    share, z2 = right / images, _Z**2
    half = _Z * (share * (1 - share) / images + z2 / (4 * images**2))
    return (share + z2 / (2 * images) - half) / (1 + z2 / images)


# Halves on both sides of an even and of an odd code, sums below zero, and sums beyond either end.
_SUMS = torch.tensor([0, 2, 6, -2, -6, 25, -40, 400])

EXERCISES = (
    Exercise(
        id="13.requantize",
        answer=requantize,
        cases=((_SUMS, 0.25, 3, 0, 15), (_SUMS * 7 + 1, 0.011, 0, 0, 7), (_SUMS - 3, 0.5, 121, 0, 255)),
        drawn=("accumulator",),
        hints=(
            Hint("Round to the nearest code: a cast to an integer type cuts the fraction off.", _cutting),
            Hint("A half goes to the even neighbour, as torch.round does it; floor(v + 0.5) sends it up.", _half_up),
            Hint("Round first and add zero_point after: with an odd one a half goes the other way.", _zero_point_first),
            Hint("quant_min and quant_max are codes: clip after zero_point was added.", _clipped_first),
            Hint("A sum may lie far beyond the grid: its code is clipped to quant_min..quant_max.", _without_clip),
            Hint("The sum of nothing stands for 0.0, and the code of 0.0 is zero_point: add it.", _without_zero_point),
        ),
        library="dfqlab.deployment.reference.requantize",
    ),
    Exercise(
        id="13.wilson_low",
        answer=wilson_low,
        cases=(
            (torch.tensor([10.0, 9.0, 5.0, 0.0, 590.0]), torch.tensor([10.0, 10.0, 10.0, 10.0, 599.0])),
            (torch.tensor([1.0, 99.0, 4950.0]), torch.tensor([100.0, 100.0, 5000.0])),
        ),
        drawn=("right", "images"),
        hints=(
            Hint(
                "Around the share itself, ten right of ten leave no doubt at all: mind the terms with z².",
                _around_the_share,
            ),
            Hint("This is the upper end: take the root off, not on.", _upper_end),
            Hint("Divide the whole by 1 + z²/n: it draws few images towards one half.", _not_divided),
            Hint("This interval is one standard error wide: 95 % take z = 1.96 of them.", _one_standard_error),
            Hint("z stands before the square root of both terms: take the root.", _half_without_root),
        ),
        library="dfqlab.measures.wilson",
    ),
)

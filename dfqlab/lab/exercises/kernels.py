"""Lesson 12: fake quantization tile by tile, and the mean of a channel, as Triton kernels.

Answers and mistakes are what a kernel leaves in its result, in plain torch; the learner's kernel itself is launched.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import dfqlab_kernels
from dfqlab.lab.checks import CannotTry, Complaint, Exercise, Hint
from dfqlab.lab.launching import launch_watched
from dfqlab_kernels.backends import triton_obstacle

MASK = "Lanes beyond the end must stay idle: give the load, and the store of a tile, a mask."
RESULT_ONLY = "A kernel writes its result and nothing else."
_BEFORE = 99.0  # stands in a result until somebody writes it


def fake_quantize_tile(
    x_ptr: Tensor, y_ptr: Tensor, scale: float, quant_min: int, quant_max: int, n: int, BLOCK: int
) -> Tensor:
    """What stands in y afterwards."""
    with dfqlab_kernels.backend("reference"):
        return dfqlab_kernels.fake_quantize(x_ptr, torch.tensor([scale]), quant_min=quant_min, quant_max=quant_max)


def channel_mean(x_ptr: Tensor, mean_ptr: Tensor, n: int, c: int, hw: int, BLOCK: int) -> Tensor:
    """What stands in mean afterwards."""
    with dfqlab_kernels.backend("reference"):
        return dfqlab_kernels.channel_stats(x_ptr)[0]


def _without_clamp(
    x_ptr: Tensor, y_ptr: Tensor, scale: float, quant_min: int, quant_max: int, n: int, BLOCK: int
) -> Tensor:
    return torch.round(x_ptr / scale) * scale


def _half_up(x_ptr: Tensor, y_ptr: Tensor, scale: float, quant_min: int, quant_max: int, n: int, BLOCK: int) -> Tensor:
    return torch.floor(x_ptr / scale + 0.5).clamp(quant_min, quant_max) * scale


def _cutting(x_ptr: Tensor, y_ptr: Tensor, scale: float, quant_min: int, quant_max: int, n: int, BLOCK: int) -> Tensor:
    return torch.trunc(x_ptr / scale).clamp(quant_min, quant_max) * scale


def _codes(x_ptr: Tensor, y_ptr: Tensor, scale: float, quant_min: int, quant_max: int, n: int, BLOCK: int) -> Tensor:
    return torch.round(x_ptr / scale).clamp(quant_min, quant_max)


def _first_tile_only(
    x_ptr: Tensor, y_ptr: Tensor, scale: float, quant_min: int, quant_max: int, n: int, BLOCK: int
) -> Tensor:
    y = fake_quantize_tile(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK)
    return torch.cat([y[:BLOCK], y_ptr[BLOCK:]])


def _divided_by_the_block(x_ptr: Tensor, mean_ptr: Tensor, n: int, c: int, hw: int, BLOCK: int) -> Tensor:
    return x_ptr.sum((0, 2)) / BLOCK


def _with_masked_zeros(x_ptr: Tensor, mean_ptr: Tensor, n: int, c: int, hw: int, BLOCK: int) -> Tensor:
    return x_ptr.sum((0, 2)) / (n * -(-hw // BLOCK) * BLOCK)


def _one_tile_a_row(x_ptr: Tensor, mean_ptr: Tensor, n: int, c: int, hw: int, BLOCK: int) -> Tensor:
    return x_ptr[..., :BLOCK].sum((0, 2)) / (n * hw)


def _as_if_in_one_piece(x_ptr: Tensor, mean_ptr: Tensor, n: int, c: int, hw: int, BLOCK: int) -> Tensor:
    return x_ptr.reshape(c, n * hw).mean(1)


def _first_channel_only(x_ptr: Tensor, mean_ptr: Tensor, n: int, c: int, hw: int, BLOCK: int) -> Tensor:
    return torch.cat([channel_mean(x_ptr, mean_ptr, n, c, hw, BLOCK)[:1], mean_ptr[1:]])


def _attempt(programs: Callable[..., int]) -> Callable[[Callable[..., Any], tuple[Any, ...]], Tensor]:
    """Launches a kernel on copies of a case's tensors and gives the second, its result."""

    def attempt(kernel: Callable[..., Any], arguments: tuple[Any, ...]) -> Tensor:
        obstacle = triton_obstacle("cpu")
        if obstacle:
            raise CannotTry(obstacle)
        x, before, *numbers = arguments
        result: Tensor = before.clone()
        done = launch_watched(kernel, programs(*numbers), x, result, *numbers)
        if done.outside:
            raise Complaint(done.outside, MASK)
        for access in done.trace.accesses:
            if (access.tensor, access.direction) == ("x", "store"):
                raise Complaint(f"Program {access.program[0]} writes into x.", RESULT_ONLY)
        return result

    return attempt


def _tiles(scale: float, quant_min: int, quant_max: int, n: int, block: int) -> int:
    return -(-n // block)


def _channels(n: int, c: int, hw: int, block: int) -> int:
    return c


def _vector(values: Tensor, scale: float, quant_min: int, quant_max: int, block: int) -> tuple[Any, ...]:
    return values, torch.full_like(values, _BEFORE), scale, quant_min, quant_max, len(values), block


def _images(n: int, c: int, hw: int, block: int) -> tuple[Any, ...]:
    x = (torch.arange(n * c * hw, dtype=torch.float32) * 7 % 11 - 3).reshape(n, c, hw) / 2
    return x, torch.full((c,), _BEFORE), n, c, hw, block


EXERCISES = (
    Exercise(
        id="12.fake_quantize_tile",
        answer=fake_quantize_tile,
        cases=(
            _vector(torch.tensor([-2.0, -0.75, -0.25, 0.25, 0.8, 1.3, 9.0]), 0.5, -2, 1, 4),
            _vector(torch.linspace(-1.2, 1.0, 20), 0.11, -8, 7, 8),
            _vector(torch.linspace(-3.0, 3.0, 33), 0.25, -8, 7, 16),
        ),
        drawn=("x_ptr",),
        hints=(
            Hint("What lies beyond the grid must end at its ends: clamp the code before you scale it.", _without_clamp),
            Hint(
                "A half goes to the even code, and floor(v + 0.5) sends it up: add 12582912.0 and take it off.",
                _half_up,
            ),
            Hint("Round to the nearest code: a cast to an integer type cuts the fraction off.", _cutting),
            Hint("Store real numbers, not their codes: a code times scale is what it stands for.", _codes),
            Hint("Every program worked on the same tile: tl.program_id(0) says which is its own.", _first_tile_only),
        ),
        library="dfqlab_kernels.fake_quantize",
        attempt=_attempt(_tiles),
    ),
    Exercise(
        id="12.channel_mean",
        answer=channel_mean,
        # A tile a row, and tiles across rows, have as many lanes in each: either way of counting masked zeros is known.
        cases=(_images(2, 3, 7, 8), _images(2, 2, 7, 4), _images(1, 4, 5, 4)),
        drawn=("mean_ptr",),
        hints=(
            Hint(
                "A mean divides by how many elements a channel has, not by how many a tile has.", _divided_by_the_block
            ),
            Hint("Masked lanes bring zeros that are nobody's: they must not count in the divisor.", _with_masked_zeros),
            Hint("A row may be longer than a tile: loop until all of it is read.", _one_tile_a_row),
            Hint(
                "A channel is not in one piece: its row in the next image begins c * hw elements later.",
                _as_if_in_one_piece,
            ),
            Hint(
                "Every program worked on the same channel: tl.program_id(0) says which is its own.", _first_channel_only
            ),
        ),
        library="dfqlab_kernels.channel_stats",
        attempt=_attempt(_channels),
    ),
)

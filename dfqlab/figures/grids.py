"""The integer grid: where one number lands on it, and what it does to the numbers of a matrix."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import dfqlab_kernels
from dfqlab.errors import DataError
from dfqlab.figures.labels import minus, wide
from dfqlab.figures.style import INK, MUTED, RULE, WIDTH, place, printable, sheet, style, white_reads_on

_NEAR, _FAR = 0.17, 0.4  # how far past its ends the ruler goes, and for a number out there, in lengths of the grid
_LEFT = 1.06  # inches, where the names of the rows stand
_RULER, _CODES, _REALS, _NUMBER = 0.0, -0.34, 0.4, 1.12  # heights, in inches above the ruler
_ROWS, _COLUMNS = 6, 8


@style()
def number_line(
    x: float, scale: float, zero_point: int, quant_min: int, quant_max: int, *, title: str | None = None
) -> Figure:
    """The integer grid as a ruler, codes under it and the reals that they stand for above, and where `x` lands.

    Args:
        x: rounded and clipped by `dfqlab_kernels.fake_quantize`.
        scale, zero_point: code `q` stands for `(q - zero_point) * scale`.
        quant_min, quant_max: the ends of the grid, inclusive.
        title: a sentence that says what to see; tells the code and what it stands for if None.

    Raises:
        DataError: `x` is not finite, `scale` is not positive, or the grid has fewer than two codes.
    """
    if not math.isfinite(x):
        raise DataError(f"x={x}: expected a finite number, for which there is a place on the ruler")
    if not (scale > 0 and math.isfinite(scale)):
        raise DataError(f"scale={scale}: expected a positive number, try 0.1")
    if quant_min >= quant_max:
        raise DataError(f"codes {quant_min}..{quant_max}: expected two or more, try -8..7")
    position = x / scale + zero_point
    landed = dfqlab_kernels.fake_quantize(
        torch.tensor([x]), torch.tensor([scale]), torch.tensor([zero_point]), quant_min=quant_min, quant_max=quant_max
    )
    code = zero_point + round(float(landed) / scale)
    real, number = _real((code - zero_point) * scale, scale), minus(f"{x:.4g}")
    clipped = not quant_min - 0.5 <= position <= quant_max + 0.5
    how = "is clipped to" if clipped else "becomes"
    figure = sheet(title or f"{number} {how} code {minus(str(code))}, which stands for {real}", 2.2)
    axes = place(figure, _LEFT, 0.06, WIDTH - _LEFT - 0.08, 2.14)
    axes.set_axis_off()
    axes.set_ylim(-0.66, 1.48)
    low, high = _reach(position, quant_min, quant_max)
    axes.set_xlim(low, high)
    _outside(axes, low, quant_min, quant_max, high)
    _ticks(axes, quant_min, quant_max)
    point = (high - low) / (72 * (WIDTH - _LEFT - 0.08))
    for label in _labelled(code, zero_point, quant_min, quant_max, scale, point):
        bold, color = ("bold", INK) if label == code else ("normal", MUTED)
        for height, text in ((_REALS, _real((label - zero_point) * scale, scale)), (_CODES, minus(str(label)))):
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1} if label == code else None
            axes.text(label, height, text, color=color, fontweight=bold, ha="center", va="center", bbox=box)
        axes.vlines(label, -0.17, 0.17, color=color, linewidth=3.2 if label == code else 1.4)
    _number(axes, position, code, f"x = {number}")
    return figure


@style()
def matrix_view(
    matrices: Mapping[str, Float[Tensor, "rows columns"] | Int[Tensor, "rows columns"]], *, title: str, digits: int = 2
) -> Figure:
    """Small matrices with the number in every cell, orange above zero and purple below, white at zero.

    One scale of colour serves all matrices of reals, so that an error looks as small as it is. Integers are in another
    unit, and share a scale of their own. Matrices stand side by side where their numbers stay readable.

    Args:
        matrices: at most 6 rows by 8 columns each, by the name that stands above.
        title: a sentence that says what to see.
        digits: behind the point of a real.

    Raises:
        DataError: no matrix, or one that is empty or too large to read.
    """
    if not matrices:
        raise DataError("nothing to draw: no matrices")
    for name, matrix in matrices.items():
        rows, columns = matrix.shape
        if not (0 < rows <= _ROWS and 0 < columns <= _COLUMNS):
            raise DataError(
                f"{name!r} is {rows} x {columns}: expected at least 1 x 1 and at most {_ROWS} x {_COLUMNS}, "
                f"try matrix[:{_ROWS}, :{_COLUMNS}]"
            )
    numbers = {name: matrix.detach().cpu().double().numpy() for name, matrix in matrices.items()}
    written = {name: _written(matrix, 0 if _whole(matrix) else digits) for name, matrix in matrices.items()}
    largest = {
        whole: max([0.0, *(_largest(numbers[name]) for name in matrices if _whole(matrices[name]) is whole)])
        for whole in (False, True)
    }
    longest = max((text for cells in written.values() for row in cells for text in row), key=wide)
    points, cell, lines = _side_by_side([matrix.shape[1] for matrix in numbers.values()], longest)
    names = iter(matrices)
    rows_of_names = [[next(names) for _ in range(count)] for count in lines]
    heights = [0.4 + 0.36 * max(len(numbers[name]) for name in row) for row in rows_of_names]
    figure = sheet(title, sum(heights) + 0.12)
    top = sum(heights) + 0.06
    for row, height in zip(rows_of_names, heights, strict=True):
        spare = WIDTH - 0.16 - cell * sum(numbers[name].shape[1] for name in row)
        left = 0.08
        for name in row:
            across, down = cell * numbers[name].shape[1], 0.36 * len(numbers[name])
            axes = place(figure, left, top - 0.36 - down, across, down)
            _cells(axes, numbers[name], written[name], largest[_whole(matrices[name])], points)
            axes.set_title(
                printable(name, max(8, int(across * 8.5))), loc="left", fontsize=12.5, fontweight="bold", pad=5
            )
            left += across + min(0.5, spare / max(1, len(row) - 1))
        top -= height
    return figure


def _real(value: float, scale: float) -> str:
    """With as many digits as tell neighbours on the grid apart, and one more."""
    digits = max(0, 1 - math.floor(math.log10(scale)))
    return minus(f"{value:.{digits}f}" if digits <= 5 else f"{value:.3g}")


def _reach(position: float, quant_min: int, quant_max: int) -> tuple[float, float]:
    length = quant_max - quant_min
    near, far = _NEAR * length + 0.5, _FAR * length + 0.5
    below, above = (min(far, 1.25 * past) for past in (quant_min - position, position - quant_max))
    return quant_min - max(near, below), quant_max + max(near, above)


def _outside(axes: Axes, low: float, quant_min: int, quant_max: int, high: float) -> None:
    for start, end in ((low, quant_min - 0.5), (quant_max + 0.5, high)):
        axes.axvspan(start, end, facecolor="#f3f3f5", edgecolor=RULE, hatch="//", linewidth=0)
        axes.text(
            (start + end) / 2,
            -0.55,
            "clipped",
            color=MUTED,
            ha="center",
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 2},
        )
    for height, text in ((_REALS, "stands for"), (_CODES, "code")):
        axes.annotate(
            text,
            xy=(0, height),
            xycoords=("axes fraction", "data"),
            xytext=(-7, 0),
            textcoords="offset points",
            color=MUTED,
            ha="right",
            va="center",
            annotation_clip=False,
        )


def _ticks(axes: Axes, quant_min: int, quant_max: int) -> None:
    few = quant_max - quant_min < 64
    axes.hlines(_RULER, quant_min, quant_max, color=MUTED, linewidth=1.2)
    axes.vlines(np.arange(quant_min, quant_max + 1), -0.1, 0.1, color=MUTED, linewidth=1.2 if few else 0.5)


def _labelled(code: int, zero_point: int, quant_min: int, quant_max: int, scale: float, point: float) -> Sequence[int]:
    """Where it lands, the ends and zero, then multiples of a power of two, as far as none stands on another."""

    def half(label: int) -> float:
        return point * (max(wide(_real((label - zero_point) * scale, scale)), wide(str(label))) / 2 + 5)

    step = 1
    while step < 2 * max(half(quant_min), half(quant_max)):
        step *= 2
    wanted = [code, quant_min, quant_max, zero_point]
    wanted += [label for label in range(quant_min, quant_max + 1) if label % step == 0]
    chosen: list[int] = []
    for label in wanted:
        inside = quant_min <= label <= quant_max
        if inside and all(abs(label - other) >= half(label) + half(other) for other in chosen):
            chosen.append(label)
    return sorted(chosen)


def _number(axes: Axes, position: float, code: int, text: str) -> None:
    """The number itself where it is, or at the edge that it is beyond, and an arrow to where it lands."""
    low, high = axes.get_xlim()
    margin = 0.015 * (high - low)
    seen = min(high - margin, max(low + margin, position))
    marker = "o" if seen == position else ">" if seen < position else "<"
    axes.plot([seen], [_NUMBER], color=INK, marker=marker, markersize=9)
    if seen == position:
        axes.vlines(seen, _RULER, _NUMBER, color=INK, linestyle=":", linewidth=1.4)
        axes.plot([seen], [_RULER], color="white", marker="o", markersize=6, markeredgecolor=INK)
    share = (seen - low) / (high - low)
    side = "left" if share < 0.12 else "right" if share > 0.88 else "center"
    axes.text(seen, _NUMBER + 0.24, text, fontweight="bold", ha=side, va="center")
    axes.annotate(
        "",
        xy=(code, _REALS + 0.13),
        xytext=(seen, _NUMBER - 0.07),
        arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.8, "shrinkA": 2, "shrinkB": 0},
    )


def _whole(matrix: Tensor) -> bool:
    return not torch.is_floating_point(matrix)


def _written(matrix: Tensor, digits: int) -> list[list[str]]:
    return [[minus(f"{value:.{digits}f}") for value in row] for row in matrix.tolist()]


def _largest(numbers: np.ndarray) -> float:
    return float(np.abs(numbers[np.isfinite(numbers)]).max(initial=0.0))


def _side_by_side(columns: Sequence[int], longest: str) -> tuple[float, float, list[int]]:
    """The largest type with which matrices take the fewest lines, a cell's width, and how many stand in each line."""
    ways = []
    for points in (12.5, 11.5, 10.5):
        cell = max(0.36, wide(longest, points) / 72 + 0.1)
        lines: list[list[int]] = [[]]
        for count in columns:
            across = cell * (sum(lines[-1]) + count) + 0.2 * len(lines[-1])
            if lines[-1] and (len(lines[-1]) == 3 or across > WIDTH - 0.16):
                lines.append([])
            lines[-1].append(count)
        ways.append((points, cell, [len(line) for line in lines]))
    return min(ways, key=lambda way: len(way[2]))


def _cells(axes: Axes, numbers: np.ndarray, written: Sequence[Sequence[str]], largest: float, points: float) -> None:
    shown = np.nan_to_num(numbers, posinf=0, neginf=0) / (largest or 1)
    colors = colormaps["PuOr_r"](0.5 + 0.5 * shown)
    colors[~np.isfinite(numbers)] = 1
    rows, columns = numbers.shape
    axes.imshow(colors, aspect="auto", interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set(visible=True, color=MUTED)
    axes.hlines(np.arange(0.5, rows - 1), -0.5, columns - 0.5, color="white", linewidth=1)
    axes.vlines(np.arange(0.5, columns - 1), -0.5, rows - 0.5, color="white", linewidth=1)
    white = white_reads_on(colors[..., :3])
    for row, column in np.ndindex(rows, columns):
        color = "white" if white[row, column] else INK
        axes.text(column, row, written[row][column], color=color, fontsize=points, ha="center", va="center_baseline")

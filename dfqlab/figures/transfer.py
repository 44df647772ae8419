"""Whom images serve: a matrix of what they were made from and by whom they are judged."""

import textwrap
from collections.abc import Mapping
from math import isfinite
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dfqlab.errors import DataError
from dfqlab.figures.labels import wide
from dfqlab.figures.style import COLORS, INK, MUTED, WIDTH, color_of, place, printable, sheet, style, white_reads_on

_ROW, _LINE, _KEY = 0.4, 0.21, 0.58  # inches: a row, a line of names over the columns, the lines under the matrix
_ROWS, _COLUMNS = 12, 6
_LONGEST_NAME = 26
_COLORS = colormaps["cividis_r"]  # uniform to the eye, light to dark, to every kind of eye
_LEAST_SHARE = 1e-3  # of its column's largest: what is smaller counts as this where colours are chosen


@style()
def transfer_matrix(
    values: Mapping[str, Mapping[str, float]], *, measure: str, best: Literal["low", "high"], title: str | None = None
) -> Figure:
    """What each set of images is worth to each network, with the number in every cell and the best of a column framed.

    Numbers of different networks may be in different units: a cell is the darker the more times it is worse than the
    best of its column. Real data sets the scale but is not framed: it was not made.

    Args:
        values: {who judges: {what the images were made from: number}}, as `measures.alignment_matrix` gives it; none
            negative. At most 6 columns and 12 rows.
        measure: what the numbers are, with their unit.
        best: which end of the measure is good.
        title: a sentence that says what to see; tells what is best for most networks if None.

    Raises:
        DataError: no numbers, too many to read, columns of different rows, or numbers negative or not finite.
    """
    columns = list(values)
    rows = list(values[columns[0]]) if columns else []
    if not (0 < len(columns) <= _COLUMNS and 0 < len(rows) <= _ROWS):
        raise DataError(f"{len(rows)} x {len(columns)} numbers: expected 1 x 1 to {_ROWS} x {_COLUMNS}")
    for name, column in values.items():
        if set(column) != set(rows):
            raise DataError(f"{name!r} judges {sorted(column)}, but {columns[0]!r} {sorted(rows)}: expected the same")
        if not all(isfinite(value) and value >= 0 for value in column.values()):
            raise DataError(f"{name!r} gives {dict(column)}: expected numbers of zero or more")
    numbers = np.array([[values[column][row] for column in columns] for row in rows], dtype=np.float64)
    made = [index for index, row in enumerate(rows) if color_of(row) != COLORS["real"]] or list(range(len(rows)))
    framed = _best_of(numbers, made, best)
    names = {row: printable(row, _LONGEST_NAME) for row in rows}
    left = 0.25 + 1.09 * max(wide(name) for name in [*names.values(), "made from"]) / 72
    width = min(1.3, (WIDTH - left - 0.1) / len(columns))
    points = 12.5 if width > 0.8 else 10.5
    heads = [_wrapped(name, width, points) for name in _short_names(columns)]
    above = 0.18 + _LINE * max(len(lines) for lines in heads)
    figure = sheet(title or _sentence(rows, columns, framed), above + _ROW * len(rows) + _KEY)
    axes = place(figure, left, _KEY, width * len(columns), _ROW * len(rows))
    _cells(axes, numbers, _shades(numbers, best), framed, points)
    axes.set_yticks(range(len(rows)), list(names.values()))
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set(color=color_of(row), fontweight="bold")
    axes.set_xticks(
        range(len(columns)), ["\n".join(lines) for lines in heads], color=INK, fontsize=points, va="baseline"
    )
    axes.xaxis.tick_top()
    axes.annotate(
        "made from", xy=(0, 1), xycoords="axes fraction", xytext=(-5, 4), textcoords="offset points", color=MUTED,
        ha="right", va="baseline",
    )  # fmt: skip
    key = place(figure, 0.06, 0.0, WIDTH - 0.12, _KEY)
    key.set_axis_off()
    words = (
        f"{printable(measure, 60)}, {best} is good\n"
        "darker: more times worse than its column's best; framed: the best that was made"
    )
    key.text(0, 0.45, words, color=MUTED, fontsize=11, va="center", transform=key.transAxes)
    return figure


def _best_of(numbers: np.ndarray, made: list[int], best: str) -> set[tuple[int, int]]:
    """Every cell of what was made that no other of its column beats."""
    chosen = set()
    for column in range(numbers.shape[1]):
        of = numbers[made, column]
        end = of.min() if best == "low" else of.max()
        chosen |= {(row, column) for row in made if numbers[row, column] == end}
    return chosen


def _shades(numbers: np.ndarray, best: str) -> np.ndarray:
    """0 for the best of a column, 1 for what is most times worse than that, at least twice."""
    largest = numbers.max(0, keepdims=True)
    logs = np.log(np.maximum(numbers, _LEAST_SHARE * np.where(largest > 0, largest, 1)))
    worse = logs - logs.min(0, keepdims=True) if best == "low" else logs.max(0, keepdims=True) - logs
    return np.asarray(worse / max(np.log(2), worse.max()))


def _cells(axes: Axes, numbers: np.ndarray, shades: np.ndarray, framed: set[tuple[int, int]], points: float) -> None:
    rows, columns = numbers.shape
    colors = _COLORS(0.04 + 0.9 * shades)
    axes.imshow(colors, aspect="auto", interpolation="nearest")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.hlines(np.arange(0.5, rows - 1), -0.5, columns - 0.5, color="white", linewidth=2)
    axes.vlines(np.arange(0.5, columns - 1), -0.5, rows - 0.5, color="white", linewidth=2)
    white = white_reads_on(colors[..., :3])
    for row, column in np.ndindex(rows, columns):
        color = "white" if white[row, column] else INK
        weight = "bold" if (row, column) in framed else "normal"
        axes.text(
            column, row, _written(float(numbers[row, column])), color=color, fontweight=weight, ha="center",
            va="center_baseline", fontsize=points,
        )  # fmt: skip
    for row, column in framed:
        frame = Rectangle(
            (column - 0.46, row - 0.44), 0.92, 0.88, facecolor="none", edgecolor=INK, linewidth=2, clip_on=False
        )
        axes.add_patch(frame)


def _written(value: float) -> str:
    if 0 < value < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}" if value >= 0.01 else f"{value:.2g}"


def _short_names(names: list[str]) -> list[str]:
    """Without what stands before the last slash, where that leaves them distinct."""
    tails = [name.rsplit("/", 1)[-1] for name in names]
    return tails if all(tails) and len(set(tails)) == len(names) else names


def _wrapped(name: str, width: float, points: float) -> list[str]:
    """A name in at most two lines that fit a cell, broken where a path is."""
    spaced = printable(name, 60).replace("/", "/ ").replace("_", "_ ").replace("-", "- ")
    lines = textwrap.wrap(spaced, max(4, int(72 * width / (0.66 * points))), max_lines=2, placeholder="…") or [""]
    return [line.replace("/ ", "/").replace("_ ", "_").replace("- ", "-") for line in lines]


def _sentence(rows: list[str], columns: list[str], framed: set[tuple[int, int]]) -> str:
    wins = {row: sum((index, column) in framed for column in range(len(columns))) for index, row in enumerate(rows)}
    first = max(wins, key=wins.__getitem__)
    if len(columns) == 1:
        return f"For {columns[0]}, {first} is best"
    if wins[first] == 1:
        return "No set of images is best for two networks"
    return f"{first} is best for {wins[first]} of {len(columns)} networks"

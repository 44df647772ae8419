"""Inversions side by side, a row each; and one on its way: its images so far over the terms of its loss."""

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from textwrap import wrap
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.figures.labels import name_ends
from dfqlab.figures.lines import DASHES, fit_scale
from dfqlab.figures.pictures import GAP, LINE, Page, page_width, to_tiles
from dfqlab.figures.style import DPI, INK, MUTED, WIDTH, place, printable, sheet, style

_NAMES, _NAME = 178, 19  # right of a row: pixels, and characters of a line
_CAPTIONS = 150
_EMPTY = 244  # grey level of what is still to come
_DEEPEST = 1000
_PLOT = 2.05  # inches


@style()
def image_rows(rows: Mapping[str, Float[Tensor, "n c h w"]], heads: Sequence[str] = (), *, title: str) -> Figure:
    """A row of images for each source, its name beside it.

    Args:
        rows: as many images of each source, as `image_grid` takes them; at most about ten.
        heads: what stands over each column; nothing if empty.
        title: a sentence that says what to see.

    Raises:
        DataError: no rows, rows of different shapes, or not one head for each column.
    """
    shapes = {tuple(images.shape) for images in rows.values()}
    if len(shapes) != 1:
        raise DataError(f"expected as many images of one size in every row, got {sorted(shapes) or 'no row'}")
    columns = shapes.pop()[0]
    if heads and len(heads) != columns:
        raise DataError(f"{columns} columns need as many heads, got {len(heads)}")
    cell = (page_width() - _NAMES) // max(6, columns) - GAP
    tiles = [to_tiles(images, cell) for images in rows.values()]
    above = LINE + 6 if heads else 0
    page = Page(columns, len(rows), tiles[0].shape[1:3], title, above=above, right=_NAMES)
    for row, line in enumerate(tiles):
        for column, tile in enumerate(line):
            page.put(tile, row, column)
    for column, head in enumerate(heads):
        page.write_above(printable(head, 8), column)
    for row, name in enumerate(rows):
        page.write_right("\n".join(wrap(printable(name, 60), _NAME, max_lines=2, placeholder="…")), row)
    return page.figure()


@style()
def inversion_progress(
    snapshots: Sequence[tuple[int, Float[Tensor, "n c h w"]]],
    steps: Sequence[int],
    values: Mapping[str, Sequence[float]],
    *,
    total: int,
    rows: int,
    columns: int,
    captions: Sequence[str] = (),
    title: str,
) -> Figure:
    """An inversion on its way: the same images at a few steps, and every term of the loss at each.

    Its places are fixed and nothing is solved, so that it can be drawn again while it runs.

    Args:
        snapshots: (step, the same images at that step), at most `columns` of them with `rows` images each.
        steps: at which the values were read.
        values: a value for each step, by the name of the term.
        total: steps of the whole run.
        rows, columns: how many images and snapshots there will be, whether they are there or not.
        captions: what the images are by now, one for each row; none if empty.
        title: a sentence that says what to see.

    Raises:
        DataError: more snapshots than columns, other than `rows` images or captions, or not a value for each step.
    """
    if len(snapshots) > columns or any(len(images) != rows for _, images in snapshots):
        sizes = [len(images) for _, images in snapshots]
        raise DataError(f"expected at most {columns} snapshots of {rows} images, got {sizes}")
    if captions and len(captions) != rows:
        raise DataError(f"{rows} rows need as many captions, got {len(captions)}")
    for name, line in values.items():
        if len(line) != len(steps):
            raise DataError(f"{name!r} has {len(line)} values for {len(steps)} steps")
    cell = (page_width() - _CAPTIONS) // columns - GAP
    strip = _strip([images for _, images in snapshots], rows, columns, cell)
    high, wide = strip.shape[0] / DPI, strip.shape[1] / DPI
    below = 0.62 + _PLOT + 0.28
    figure = sheet(title, below + high + 0.3)
    axes = place(figure, 0.06, below, wide, high)
    axes.set_axis_off()
    axes.imshow(strip, interpolation="nearest", aspect="auto", extent=(0, strip.shape[1], strip.shape[0], 0))
    words: dict[str, Any] = {"color": MUTED, "fontsize": "small"}
    for column, (step, _) in enumerate(snapshots):
        at = column * (cell + GAP) + cell / 2
        axes.text(at, -7, f"step {step}" if column == 0 else f"{step}", ha="center", **words)
    for row, caption in enumerate(captions):
        at = row * (cell + GAP) + cell / 2
        axes.text(strip.shape[1] + 10, at, caption, ha="left", va="center", linespacing=1.15, **words)
    _curves(figure, steps, values, total)
    return figure


def _strip(snapshots: Sequence[Tensor], rows: int, columns: int, cell: int) -> UInt8[np.ndarray, "height width 3"]:
    """Columns of images, those that are still to come as empty places."""
    side = cell + GAP
    strip = np.full((rows * side - GAP, columns * side - GAP, 3), 255, np.uint8)
    for column in range(columns):
        if column < len(snapshots):
            tiles = to_tiles(snapshots[column], cell)
        else:
            tiles = np.full((rows, cell, cell, 3), _EMPTY, np.uint8)
        for row, tile in enumerate(tiles):
            height, width, _ = tile.shape
            top, left = row * side + (cell - height) // 2, column * side + (cell - width) // 2
            strip[top : top + height, left : left + width] = tile
    return strip


def _curves(figure: Figure, steps: Sequence[int], values: Mapping[str, Sequence[float]], total: int) -> None:
    axes: Axes = place(figure, 0.72, 0.62, WIDTH - 0.72 - 1.45, _PLOT)
    axes.set_xlim(0, total)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    if not steps:
        axes.set_yticks([])
        box = {"facecolor": "white", "edgecolor": "none"}
        axes.text(0.5, 0.46, "not run yet", transform=axes.transAxes, color=MUTED, ha="center", bbox=box)
        return
    for index, line in enumerate(values.values()):
        drawn = [value if isfinite(value) else nan for value in line]
        axes.plot(steps, drawn, color=INK, linestyle=DASHES[index % len(DASHES)])
    fit_scale(axes, values)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, high / _DEEPEST), high)  # what is a thousandth of the loss does not matter
    name_ends(figure, axes, steps, values, dict.fromkeys(values, INK))

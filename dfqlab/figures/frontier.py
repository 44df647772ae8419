"""Mixed precision: what a size costs in loss, and which layer has how many bits there."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfqlab.compression.allocation import Allocation
from dfqlab.errors import DataError
from dfqlab.figures.labels import short, wide
from dfqlab.figures.lines import fit_scale
from dfqlab.figures.style import (
    INK,
    MUTED,
    OTHER,
    WIDTH,
    canvas,
    place,
    printable,
    set_title,
    settle,
    sheet,
    style,
    white_reads_on,
)

_ROW = 0.26  # inches
_LONGEST_NAME = 30
_ROWS, _COLUMNS = 60, 12
_WIDEST = 8
_COLORS = colormaps["cividis_r"]  # uniform to the eye, light to dark, to every kind of eye


@style()
def loss_frontier(
    frontier: Sequence[Allocation], one_width: Sequence[Allocation] = (), *, title: str | None = None
) -> Figure:
    """The least loss at each size, a line, and what all layers lose at one width, points beside it (ZeroQ).

    Args:
        frontier: as `allocation.frontier` gives it.
        one_width: as `allocation.one_width` gives it.
        title: a sentence that says what to see; tells where a width for each layer gains most if None.

    Raises:
        DataError: no frontier.
    """
    if not frontier:
        raise DataError("nothing to draw: expected a frontier of one point or more, got none")
    points = sorted(frontier, key=lambda point: point.mean_bits)
    figure, axes = canvas(3.6)
    set_title(figure, title or _gain(points, one_width))
    axes.plot([p.mean_bits for p in points], [p.loss for p in points], color=OTHER, marker="o", markersize=6)
    axes.plot([p.mean_bits for p in one_width], [p.loss for p in one_width], color=INK, marker="D", linestyle="none")
    _name(axes, points, "a width for each layer", OTHER, above=False)
    _name(axes, sorted(one_width, key=lambda point: point.mean_bits), "one width for all", INK, above=True)
    fit_scale(axes, {"frontier": [p.loss for p in points], "one width": [p.loss for p in one_width]})
    axes.set_xlabel("bits of a weight, on average")
    axes.set_ylabel("sum of what layers lose")
    settle(figure)
    return figure


@style()
def bits_along_frontier(allocations: Sequence[Allocation], *, title: str | None = None) -> Figure:
    """The bits of each layer, top to bottom, at each size, left to right: a table whose cells are darker for more.

    Args:
        allocations: of the same layers; at most 12.
        title: a sentence that says what to see; tells which layer has most bits where there are few if None.

    Raises:
        DataError: no allocation, more than can be read, or such of different layers.
    """
    layers = list(allocations[0].widths) if allocations else []
    if not (0 < len(allocations) <= _COLUMNS and 0 < len(layers) <= _ROWS):
        raise DataError(
            f"{len(layers)} layers at {len(allocations)} sizes: expected 1 to {_ROWS} layers and 1 to {_COLUMNS} sizes"
        )
    if any(list(allocation.widths) != layers for allocation in allocations):
        raise DataError("allocations of different layers: expected the same layers in the same order in each")
    points = sorted(allocations, key=lambda point: point.mean_bits)
    bits = np.array([[point.widths[layer] for point in points] for layer in layers])
    names = [printable(layer, _LONGEST_NAME) for layer in layers]
    left = 0.25 + 1.05 * max(map(wide, names)) / 72
    figure = sheet(title or _widest(layers, bits, points), _ROW * len(layers) + 0.62)
    axes = place(figure, left, 0.56, WIDTH - left - 0.1, _ROW * len(layers))
    colors = _COLORS(bits / _WIDEST)[..., :3]
    axes.imshow(colors, aspect="auto")
    for (row, column), width in np.ndenumerate(bits):
        ink = "white" if white_reads_on(colors[row, column]) else INK
        axes.text(column, row, str(width), color=ink, ha="center", va="center_baseline", fontsize=10.5)
    axes.set_yticks(range(len(layers)), names, color=INK)
    axes.set_xticks(range(len(points)), [f"{point.mean_bits:.3g}" for point in points])
    axes.set_xlabel("bits of a weight, on average", color=MUTED)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return figure


def _name(axes: Axes, points: Sequence[Allocation], name: str, color: str, *, above: bool) -> None:
    """Beside the middle one of the points."""
    if points:
        middle = points[len(points) // 2]
        axes.annotate(
            name,
            xy=(middle.mean_bits, middle.loss),
            xytext=(9, 5) if above else (-9, -5),
            textcoords="offset points",
            color=color,
            fontweight="bold",
            horizontalalignment="left" if above else "right",
            verticalalignment="bottom" if above else "top",
        )


def _gain(points: Sequence[Allocation], one_width: Sequence[Allocation]) -> str:
    """Where the best allocation of at most its size loses least, beside one width."""
    gains = []
    for alike in one_width:
        fitting = [point for point in points if point.mean_bits <= alike.mean_bits]
        if fitting and fitting[-1].loss > 0:
            gains.append((alike.loss / fitting[-1].loss, alike.mean_bits))
    if not gains:
        first, last = points[0], points[-1]
        return (
            f"Layers lose {short(first.loss)} at {first.mean_bits:.3g} bits, {short(last.loss)} at {last.mean_bits:.3g}"
        )
    ratio, bits = max(gains)
    if ratio <= 1:
        return "A width for each layer loses as much as one width for all"
    return f"At {bits:g} bits a weight, one width for all loses {short(ratio)} times what a width for each layer does"


def _widest(layers: Sequence[str], bits: np.ndarray, points: Sequence[Allocation]) -> str:
    """Whose bits are most, at the smallest size at which layers differ."""
    differs = [column for column in range(len(points)) if len(set(bits[:, column])) > 1]
    column = differs[0] if differs else 0
    size, most = points[column].mean_bits, int(bits[:, column].max())
    if not differs:
        return f"At {size:.3g} bits on average, every layer has {most}"
    named = [printable(layer, _LONGEST_NAME) for layer, row in zip(layers, bits, strict=True) if row[column] == most]
    others = f" and {len(named) - 3} more" if len(named) > 3 else ""
    verb = "has" if len(named) == 1 else "have"
    return f"At {size:.3g} bits on average, {', '.join(named[:3])}{others} {verb} {most}"

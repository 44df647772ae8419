"""The roofline: how fast a computation can be at most, by how much arithmetic it does for each byte it moves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dfqlab.errors import DataError
from dfqlab.figures.labels import apart, short, wide
from dfqlab.figures.style import CLIPPING, INK, MUTED, ROUNDING, WIDTH, place, printable, sheet, style

_LONGEST_NAME = 26
_PLATE = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
_PREFIXES = {1e15: "P", 1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k"}


@dataclass(frozen=True)
class RooflinePoint:
    """A computation.

    Attributes:
        name: written beside it.
        intensity: floating-point operations for each byte moved.
        achieved: operations a second, as measured; None puts it on the roof, where it would be at best.
    """

    name: str
    intensity: float
    achieved: float | None = None


@style()
def roofline(
    points: Sequence[RooflinePoint],
    *,
    bandwidth: float,
    peak: float | None,
    machine: str = "",
    title: str | None = None,
) -> Figure:
    """Performance over arithmetic intensity: under the slope memory decides, under the ceiling arithmetic.

    A measured point is filled, one that is only computed a hollow one on the roof; beyond the ridge it is a diamond.

    Args:
        points: what is placed; drawn from the least to the greatest intensity.
        bandwidth: of the memory, bytes a second.
        peak: of the arithmetic, operations a second; None draws the slope alone.
        machine: whose numbers these are.
        title: a sentence that says what to see; tells how many points memory holds back if None.

    Raises:
        DataError: no points, or a number that is not positive and finite.
    """
    given = [
        *(n for p in points for n in (p.intensity, p.achieved) if n is not None),
        bandwidth,
        1.0 if peak is None else peak,
    ]
    if not points or not all(math.isfinite(number) and number > 0 for number in given):
        raise DataError(f"roofline of {len(points)} points: expected one or more, all numbers positive and finite")
    points = sorted(points, key=lambda point: point.intensity)
    ridge = math.inf if peak is None else peak / bandwidth
    low, high = _reach(points, ridge)
    figure = sheet(title or _sentence(points, ridge), 3.65)
    axes = place(figure, 0.95, 0.62, WIDTH - 1.15, 2.95)
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    tops = [min(peak or math.inf, bandwidth * x) for x in (low, high)]
    heights = [_height(point, bandwidth, peak) for point in points]
    axes.set_ylim(min([tops[0], *heights]) / 1.6, max([*tops, *heights]) * 2.2)
    _roof(axes, low, high, bandwidth, peak, machine)
    axes.set_xlabel("arithmetic intensity (FLOP for each byte moved)")
    axes.set_ylabel("FLOP a second")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(10))
        axis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: with_prefix(value)))
    figure.draw_without_rendering()  # only now is it known where a point is
    _name(axes, points, heights)
    for point, height in zip(points, heights, strict=True):
        ring: dict[str, Any] = {"markerfacecolor": "white"} if point.achieved is None else {}
        color, marker = (ROUNDING, "o") if point.intensity < ridge else (CLIPPING, "D")
        axes.plot(point.intensity, height, marker, color=color, markersize=9, markeredgewidth=2.2, zorder=3, **ring)
    return figure


def with_prefix(number: float) -> str:
    """A number with the prefix of its thousands.

    >>> with_prefix(4e12), with_prefix(2.5e9), with_prefix(50)
    ('4 T', '2.5 G', '50')
    """
    size = next((size for size in _PREFIXES if abs(number) >= size), None)
    return f"{number:g}" if size is None else f"{number / size:g} {_PREFIXES[size]}"


def _height(point: RooflinePoint, bandwidth: float, peak: float | None) -> float:
    return min(peak or math.inf, bandwidth * point.intensity) if point.achieved is None else point.achieved


def _sentence(points: Sequence[RooflinePoint], ridge: float) -> str:
    bound = sum(point.intensity < ridge for point in points)
    rest = ", arithmetic the rest" if 0 < bound < len(points) else ""
    return f"Memory limits {bound or 'none'} of {len(points)} computation{'s' if len(points) > 1 else ''}{rest}"


def _reach(points: Sequence[RooflinePoint], ridge: float) -> tuple[float, float]:
    xs = [point.intensity for point in points] + ([ridge] if math.isfinite(ridge) else [])
    return min(xs) / 2.5, max(xs) * 6


def _roof(axes: Axes, low: float, high: float, bandwidth: float, peak: float | None, machine: str) -> None:
    ridge = high if peak is None else min(max(peak / bandwidth, low), high)
    axes.plot([low, ridge], [bandwidth * low, bandwidth * ridge], color=INK, zorder=2)
    whose = f" of {printable(machine, 32)}" if machine else ""
    axes.annotate(
        f"memory{whose}:\n{with_prefix(bandwidth)}B a second", xy=(0.02, 0.97), xycoords="axes fraction", va="top",
        color=MUTED, fontsize=11, bbox=_PLATE,
    )  # fmt: skip
    if peak is not None:
        axes.plot([ridge, high], [peak, peak], color=INK, zorder=2)
        axes.annotate(
            f"arithmetic: {with_prefix(peak)}FLOP a second", xy=(high, peak), xytext=(0, 6), textcoords="offset points",
            ha="right", color=MUTED, fontsize=11, bbox=_PLATE,
        )  # fmt: skip
        axes.axvline(ridge, color=MUTED, linestyle=":", linewidth=1.4, zorder=1)


def _name(axes: Axes, points: Sequence[RooflinePoint], heights: Sequence[float]) -> None:
    """Names below and to the right of their points, none over another, each with a thin line back to its point."""
    across, up = axes.transData.transform(list(zip((p.intensity for p in points), heights, strict=True))).T
    low, high, end = axes.bbox.y0, axes.bbox.y1, axes.bbox.x1
    places = apart([float(y) - 24 for y in up], 20, low + 10, high - 10)
    for point, x, y, to in zip(points, across, up, places, strict=True):
        text = f"{printable(point.name, _LONGEST_NAME)}: {short(point.intensity)}"
        start = x + 26
        for other, height in sorted(zip(across, up, strict=True)):  # beyond the points that the text would run over
            if abs(height - to) < 14 and start - 10 < other < start + 200:
                start = other + 16
        tight = start + wide(text, 11) * axes.figure.dpi / 72 > end
        axes.annotate(
            text, xy=(x, y), xycoords="figure pixels", xytext=(end - 2 if tight else start, to),
            textcoords="figure pixels", ha="right" if tight else "left", va="center", fontsize=11, color=INK,
            bbox=_PLATE, arrowprops={
                "arrowstyle": "-", "color": MUTED, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 5,
                "relpos": (0.5, 1) if tight else (0, 0.5),
            },
        )  # fmt: skip

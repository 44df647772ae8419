"""The operations that a tensor passes, in a file or in a runtime: where it is integers, and where reals."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from dfqlab.errors import DataError
from dfqlab.figures.style import INK, MUTED, ROUNDING, WIDTH, place, printable, sheet, style

_REAL = "#b7b7bd"
_BOX, _GAP, _ENTRY, _EDGE = 0.91, 0.46, 0.38, 0.06  # inches
_LANE, _TALL = 1.5, 0.5
_MOST = 5


@dataclass(frozen=True)
class Station:
    """One operation on a tensor's way.

    Attributes:
        operation: its name, as "QuantizeLinear".
        gives: the type of what comes out, as "uint8".
        holds: what else goes in, a line each, as "int8 weights, 8x1x3x3".
    """

    operation: str
    gives: str
    holds: tuple[str, ...] = ()


@style()
def operation_paths(
    paths: Mapping[str, Sequence[Station]], *, enters: str = "uint8", title: str | None = None
) -> Figure:
    """A row of boxes for each way, and arrows in the colour of what they carry: integers dark, reals grey.

    Args:
        paths: one to five operations in their order, by the name that stands above.
        enters: the type of what goes into the first of each.
        title: a sentence that says what to see; tells how many tensors are reals if None.

    Raises:
        DataError: no way, or one without operations or with more than fit.
    """
    lengths = {name: len(stations) for name, stations in paths.items()}
    if not paths or not all(1 <= length <= _MOST for length in lengths.values()):
        raise DataError(f"ways of {lengths} operations: expected one way or more, each of 1 to {_MOST} operations")
    figure = sheet(title or _sentence(paths), _LANE * len(paths))
    axes = place(figure, 0, 0, WIDTH, _LANE * len(paths))
    axes.set_axis_off()
    axes.set(xlim=(0, WIDTH), ylim=(0, _LANE * len(paths)))
    for row, (name, stations) in enumerate(paths.items()):
        top = _LANE * (len(paths) - row)
        axes.text(_EDGE, top - 0.17, printable(name, 70), fontweight="bold", va="center")
        _lane(axes, top - 0.68, stations, enters)
    return figure


def _lane(axes: Axes, middle: float, stations: Sequence[Station], enters: str) -> None:
    _arrow(axes, _EDGE, _EDGE + _ENTRY, middle, enters)
    for at, station in enumerate(stations):
        left = _EDGE + _ENTRY + at * (_BOX + _GAP)
        _box(axes, left, middle, station)
        if at + 1 < len(stations):
            _arrow(axes, left + _BOX, left + _BOX + _GAP, middle, station.gives)
    axes.text(
        left + _BOX + 0.05, middle, stations[-1].gives, fontsize=9.5, va="center", color=_color(stations[-1].gives)
    )


def _box(axes: Axes, left: float, middle: float, station: Station) -> None:
    frame = FancyBboxPatch(
        (left + 0.03, middle - _TALL / 2), _BOX - 0.06, _TALL, boxstyle="round,pad=0,rounding_size=0.06",
        facecolor="#f1f1f4", edgecolor=INK, linewidth=1.2,
    )  # fmt: skip
    axes.add_patch(frame)
    words = re.sub(r"(?<=ize)(?=Linear)|(?<=QLinear)(?=\w)", "\n", printable(station.operation, 28))
    axes.text(left + _BOX / 2, middle, words, fontsize=10, ha="center", va="center", linespacing=1.05)
    held = "\n".join(printable(line, 30) for line in station.holds)
    axes.text(
        left + _BOX / 2, middle - _TALL / 2 - 0.06, held, fontsize=9.5, color=MUTED, ha="center", va="top",
        linespacing=1.1,
    )  # fmt: skip


def _arrow(axes: Axes, left: float, right: float, middle: float, carries: str) -> None:
    color, width = _color(carries), 2.6 if _whole(carries) else 1.6
    look = {"arrowstyle": "-|>", "color": color, "linewidth": width, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=(right + 0.02, middle), xytext=(left + 0.01, middle), arrowprops=look)
    axes.text((left + right) / 2, middle + 0.1, carries, fontsize=9.5, ha="center", va="bottom", color=color)


def _whole(carries: str) -> bool:
    return "int" in carries


def _color(carries: str) -> str:
    return ROUNDING if _whole(carries) else MUTED


def _sentence(paths: Mapping[str, Sequence[Station]]) -> str:
    counts = ", ".join(
        f"{sum(not _whole(station.gives) for station in stations)} of {len(stations)} {name}"
        for name, stations in paths.items()
    )
    return f"Results that are reals: {counts}"

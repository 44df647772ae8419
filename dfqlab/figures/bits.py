"""Accuracy over bit width, drawn as the numbers come in."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfqlab.errors import DataError
from dfqlab.figures.labels import MARKERS, name_ends, wide
from dfqlab.figures.style import INK, MUTED, WIDTH, color_of, place, printable, sheet, style
from dfqlab.measures import Interval

_FLOORS = (80.0, 50.0, 0.0)  # an axis that begins at one of these moves twice at most while points come in
_LONGEST_NAME = 20


@style()
def accuracy_by_bits(
    bits: Sequence[int],
    rows: Mapping[str, Sequence[Interval | None]],
    *,
    teacher_accuracy: Interval | None = None,
    measure: str = "accuracy",
    title: str | None = None,
) -> Figure:
    """A share over bit width, many bits to the left and few to the right, for each source of calibration images.

    Its places are fixed and nothing is solved, so that it can be drawn again with each number that comes in.

    Args:
        bits: widths, each once, in any order; the axis shows all of them from the start.
        rows: a share with its interval for each of `bits` (None: not measured yet), by source.
        teacher_accuracy: the teacher's, a dashed line and its interval behind it.
        measure: what the shares are.
        title: a sentence that says what to see; tells the shares at the fewest bits measured if None.

    Raises:
        DataError: no bits, a width twice or below 1, no rows, or not one share or None for each width.
    """
    if not bits or not rows or len(set(bits)) < len(bits) or min(bits) < 1:
        raise DataError(f"bits {list(bits)} for {len(rows)} rows: expected widths from 1, each once, and a row or more")
    for source, row in rows.items():
        if len(row) != len(bits):
            raise DataError(f"{source!r} has {len(row)} shares for {len(bits)} bit widths, try None for those to come")
    order = sorted(range(len(bits)), key=lambda index: -bits[index])
    widths = [bits[index] for index in order]
    shares = {source: [row[index] for index in order] for source, row in rows.items()}
    markers = {source: MARKERS[index % len(MARKERS)] for index, source in enumerate(rows)}
    names = {source: f"{sign} {printable(source, _LONGEST_NAME)}" for source, (_, sign) in markers.items()}
    right = 0.22 + 1.09 * max(wide(name) for name in names.values()) / 72
    figure = sheet(title or _fewest(widths, shares, measure), 3.2)
    axes = place(figure, 0.72, 0.62, WIDTH - 0.72 - right, 2.34)
    axes.set_xlim(max(bits) + 0.4, min(bits) - 0.4)
    axes.set_xticks(widths)
    axes.set_ylim(*_limits(shares, teacher_accuracy))
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("bits")
    axes.set_ylabel(f"{printable(measure.split(' on ')[0], 24)} (%)")
    if teacher_accuracy is not None:
        _teacher(axes, teacher_accuracy)
    for index, (source, row) in enumerate(shares.items()):
        shift = 0.09 * (index - (len(shares) - 1) / 2)
        _line(axes, [width - shift for width in widths], row, color_of(source), markers[source][0])
    ends = {names[source]: _percent(row) for source, row in shares.items()}
    name_ends(figure, axes, widths, ends, {names[source]: color_of(source) for source in shares})
    if not any(share for row in rows.values() for share in row):
        box = {"facecolor": "white", "edgecolor": "none"}
        axes.text(0.5, 0.46, "nothing measured yet", transform=axes.transAxes, color=MUTED, ha="center", bbox=box)
    return figure


def _fewest(widths: Sequence[int], rows: Mapping[str, Sequence[Interval | None]], measure: str) -> str:
    """The shares at the fewest bits for which there are any; of more than three sources, the extremes."""
    name = measure.split(" on ")[0]
    for index in reversed(range(len(widths))):
        measured = {source: share.value for source, row in rows.items() if (share := row[index])}
        if measured:
            order = sorted(measured, key=measured.__getitem__, reverse=True)
            told = order if len(order) <= 3 else [order[0], order[-1]]
            shares = ", ".join(f"{source} {100 * measured[source]:.1f} %" for source in told)
            return f"At {widths[index]} bit{'s' if widths[index] > 1 else ''}: {shares}"
    return f"How does {name} fall from {max(widths)} to {min(widths)} bits?"


def _limits(rows: Mapping[str, Sequence[Interval | None]], teacher: Interval | None) -> tuple[float, float]:
    known = [share for row in (*rows.values(), [teacher]) for share in row if share]
    lowest = 100 * min((share.low for share in known), default=1.0)
    floor = next((floor for floor in _FLOORS if lowest >= floor), min(0.0, lowest))
    return floor, 100 + 0.02 * (100 - floor)


def _teacher(axes: Axes, share: Interval) -> None:
    axes.axhspan(100 * share.low, 100 * share.high, color=MUTED, alpha=0.12, linewidth=0)
    axes.axhline(100 * share.value, color=INK, linestyle="--", linewidth=1.6)
    axes.annotate(
        f"teacher {100 * share.value:.1f}",
        xy=(0, 1),
        xycoords="axes fraction",
        xytext=(4, 3),
        textcoords="offset points",
        va="bottom",
    )


def _percent(row: Sequence[Interval | None]) -> list[float]:
    return [100 * share.value if share else math.nan for share in row]


def _line(axes: Axes, at: Sequence[float], row: Sequence[Interval | None], color: str, marker: str) -> None:
    for x, share in zip(at, row, strict=True):
        if share:
            axes.plot([x, x], [100 * share.low, 100 * share.high], color=color, linewidth=3, alpha=0.4)
    axes.plot(at, _percent(row), color=color, marker=marker, markersize=7)

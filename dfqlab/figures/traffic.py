"""Bytes that ways to compute the same thing move: a bar each, read and written apart."""

from collections.abc import Mapping
from math import isfinite

from matplotlib.figure import Figure

from dfqlab.errors import DataError
from dfqlab.figures.labels import short, wide
from dfqlab.figures.style import INK, MUTED, ROUNDING, WIDTH, place, printable, sheet, style

_LONGEST_NAME = 30


@style()
def traffic_bars(
    rows: Mapping[str, tuple[float, float]], *, floor: float | None = None, unit: str = "B", title: str | None = None
) -> Figure:
    """How much each way reads and writes, and where the floor is: what nobody can do without.

    Args:
        rows: (read, written) by way, in `unit`.
        floor: a dashed line: every input read once, every result written once.
        unit: of the numbers; B stands for the bytes of x.
        title: a sentence that says what to see; tells how much the most moves over the least if None.

    Raises:
        DataError: no rows, or traffic that is negative or not finite.
    """
    totals = {name: read + written for name, (read, written) in rows.items()}
    if not rows or not all(isfinite(part) and part >= 0 for pair in rows.values() for part in pair):
        raise DataError(f"traffic {dict(rows)}: expected one or more rows of bytes read and written, zero or more each")
    names = {name: printable(name, _LONGEST_NAME) for name in rows}
    left = 0.2 + max(1.05, 1.12 * max(wide(name) for name in names.values()) / 72)
    height = 0.42 * len(rows) + 1.06
    figure = sheet(title or _sentence(totals), height)
    axes = place(figure, left, 0.56, WIDTH - left - 0.75, 0.42 * len(rows) + 0.1)
    most = max([*totals.values(), floor or 0]) or 1
    axes.set(xlim=(0, most), ylim=(len(rows) - 0.45, -0.55))
    for at, (name, (read, written)) in enumerate(rows.items()):
        axes.barh(at, read, height=0.56, color=ROUNDING)
        axes.barh(at, written, left=read, height=0.56, facecolor="white", edgecolor=ROUNDING, hatch="////", linewidth=1)
        axes.annotate(
            f"{totals[name]:.3g} {unit}", xy=(totals[name], at), xytext=(5, 0), textcoords="offset points",
            fontweight="bold", va="center_baseline", annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), list(names.values()), color=INK)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"bytes moved, in {unit}" + (", the bytes of x" if unit == "B" else ""))
    key = place(figure, left, height - 0.36, WIDTH - left - 0.1, 0.3)
    key.set_axis_off()
    key.set(xlim=(0, WIDTH - left - 0.1), ylim=(0, 0.3))
    for x, word, look in (
        (0.0, "read", {"color": ROUNDING}),
        (0.95, "written", {"facecolor": "white", "edgecolor": ROUNDING, "hatch": "////", "linewidth": 1}),
    ):
        key.barh(0.15, 0.28, left=x, height=0.17, **look)
        key.text(x + 0.35, 0.15, word, color=MUTED, va="center", fontsize=11)
    if floor is not None:
        axes.axvline(floor, color=INK, linestyle="--", linewidth=1.6)
        key.plot([2.2, 2.55], [0.15, 0.15], color=INK, linestyle="--", linewidth=1.6)
        key.text(2.65, 0.15, f"the floor, {floor:.3g} {unit}", color=MUTED, va="center", fontsize=11)
    return figure


def _sentence(totals: Mapping[str, float]) -> str:
    most, least = (pick(totals, key=totals.__getitem__) for pick in (max, min))
    if len(totals) == 1 or totals[least] == 0:
        return f"What {printable(most, _LONGEST_NAME)} moves"
    ratio = short(totals[most] / totals[least])
    first = printable(most, _LONGEST_NAME)
    return f"{first[:1].upper()}{first[1:]}: {ratio} times the bytes of {printable(least, _LONGEST_NAME)}"

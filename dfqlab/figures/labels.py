"""Words beside what is drawn: names at the ends of lines, none over another, and the numbers of a title."""

import math
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfqlab.figures.style import printable, settle

MARKERS = (("o", "●"), ("^", "▲"), ("s", "■"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"), ("*", "★"))
"""Those on a line, and those before its name."""


def name_ends(
    figure: Figure,
    axes: Axes,
    x: Sequence[int],
    lines: Mapping[str, Sequence[float]],
    colors: Mapping[str, str],
) -> None:
    """Write each line's name at its end, no name over another."""
    labels = []
    for name, line in lines.items():
        drawn = [(at, value) for at, value in zip(x, line, strict=True) if math.isfinite(value)]
        if drawn:
            y = max(drawn[-1][1], axes.get_ylim()[0])
            label = axes.annotate(
                printable(name, 28),
                xy=(1, y),
                xycoords=("axes fraction", "data"),
                xytext=(9, 0),
                textcoords="offset points",
                color=colors[name],
                fontweight="bold",
                verticalalignment="center_baseline",
            )
            labels.append(label)
    settle(figure)  # only now is it known how many points a unit of y takes
    heights = [axes.transData.transform((0, label.xy[1]))[1] * 72 / figure.dpi for label in labels]
    low, high = axes.bbox.y0 * 72 / figure.dpi, axes.bbox.y1 * 72 / figure.dpi
    for label, height, place in zip(labels, heights, apart(heights, 17, low, high), strict=True):
        label.set_position((9, place - height))


def apart(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights moved as little as leaves `gap` between any two, and none outside low..high where there is room.

    >>> apart([5, 6, 30], gap=4, low=0, high=40)
    [3.5, 7.5, 30.0]
    """
    groups: list[tuple[float, list[int]]] = []  # the height of a group's lowest, and its members from there up
    for index in sorted(range(len(heights)), key=lambda index: heights[index]):
        members = [index]
        bottom = max(low, min(high, heights[index]))
        while groups and groups[-1][0] + gap * len(groups[-1][1]) > bottom:
            members = groups.pop()[1] + members
            middle = statistics.fmean(heights[member] for member in members)
            bottom = max(low, min(high - gap * (len(members) - 1), middle - gap * (len(members) - 1) / 2))
        groups.append((bottom, members))
    places = {member: bottom + gap * rank for bottom, members in groups for rank, member in enumerate(members)}
    return [float(places[index]) for index in range(len(heights))]


def evenly(count: int, most: int) -> list[int]:
    """At most `most` indices below `count`, the first and the last among them, and evenly apart where numbers allow."""
    if count <= most:
        return list(range(count))
    chosen = next((n for n in range(most, most // 2, -1) if (count - 1) % (n - 1) == 0), most)
    return [round(index * (count - 1) / (chosen - 1)) for index in range(chosen)]


def median_sentence(distances: Mapping[str, Sequence[float]], *, of: str) -> str:
    """The median distance of each source from what is remembered; of more than four sources, the extremes."""
    medians = {
        source: statistics.median(finite)
        for source, line in distances.items()
        if (finite := [value for value in line if math.isfinite(value)])
    }
    if not medians:
        return f"No source gave any {of} finite values"
    order = sorted(medians, key=medians.__getitem__)
    told = order if len(order) <= 4 else [order[0], order[-1]]
    others = "".join(f", {source} {short(medians[source])}" for source in told[1:])
    return f"In the median {of}, {told[0]} is {short(medians[told[0]])}{others} std from what is remembered"


def short(value: float) -> str:
    """A number in two digits, or as many as stand before its point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"


def wide(text: str, points: float = 12.5) -> float:
    """About how many points a text is wide, before it is drawn."""
    return points * sum({".": 0.32, ",": 0.32, " ": 0.32, "−": 0.84}.get(character, 0.64) for character in text)


def minus(text: str) -> str:
    """A number with a minus sign as long as a plus, and none before a zero.

    >>> minus("-0.50"), minus("-0.00")
    ('−0.50', '0.00')
    """
    return text.replace("-", "−" if any(digit in text for digit in "123456789") else "")

"""What a network remembers of its data, beside what other images do to it: statistics by channel, and ranges."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.figures.labels import MARKERS, median_sentence, minus, name_ends, short, wide
from dfqlab.figures.style import INK, MUTED, RULE, canvas, color_of, printable, set_title, settle, style

_MOST_CHANNELS = 64
_BINS = 96


@style()
def layer_statistics(
    mean: Float[Tensor, "c"],
    std: Float[Tensor, "c"],
    found: Mapping[str, tuple[Float[Tensor, "c"], Float[Tensor, "c"]]],
    *,
    layer: str,
    title: str | None = None,
) -> Figure:
    """What one BatchNorm layer remembers of every channel, mean and one std either side, and what batches do to it.

    Args:
        mean, std: remembered. Channels are drawn by ascending remembered mean, of more than 64 evenly spaced 64 of
            that order.
        found: mean and std of the channels for a batch of each source.
        layer: its module path.
        title: a sentence that says what to see; tells each source's distance in the median channel if None.

    Raises:
        DataError: no channels, no sources, or not a mean and a std for each channel.
    """
    if len(mean) == 0 or not found:
        raise DataError(f"nothing to draw: {len(mean)} channels and {len(found)} sources")
    for source, pair in {"remembered": (mean, std), **found}.items():
        if any(values.shape != mean.shape for values in pair):
            shapes = [tuple(values.shape) for values in pair]
            raise DataError(f"{source!r} has a mean and a std of shapes {shapes}: expected one for each of {len(mean)}")
    order = torch.argsort(mean.detach().cpu(), stable=True)
    chosen = order[torch.linspace(0, len(order) - 1, min(len(order), _MOST_CHANNELS)).round().long()].numpy()
    center, width = _numbers(mean)[chosen], _numbers(std)[chosen]
    distances = {source: _distances(mean, std, of).tolist() for source, (of, _) in found.items()}
    figure, axes = canvas(4.2)
    set_title(figure, title or median_sentence(distances, of="channel"))
    x = np.arange(len(chosen))
    _remembered(axes, x, center, width)
    lines: dict[str, Sequence[float]] = {"▭ remembered": center.tolist()}
    colors = {"▭ remembered": MUTED}
    few = len(chosen) <= 24
    size = max(3.0, min(7.0, 190 / (len(chosen) * (1 + len(found)))))
    for index, (source, (of, spread)) in enumerate(found.items()):
        at = x + 0.8 * ((index + 1) / (len(found) + 1) - 0.5)
        (marker, sign), color = MARKERS[index % len(MARKERS)], color_of(source)
        dots, whiskers = _numbers(of)[chosen], _numbers(spread)[chosen]
        thick, faint = (1.6, 0.6) if few else (0.9, 0.45)
        axes.vlines(at, dots - whiskers, dots + whiskers, color=color, linewidth=thick, alpha=faint)
        axes.plot(at, dots, color=color, marker=marker, markersize=size, linestyle="", zorder=3)
        name = f"{sign} {printable(source, 24)}"
        lines[name], colors[name] = dots.tolist(), color
    axes.set_xlim(-0.6, len(chosen) - 0.4)
    axes.set_xticks(x if few else [], chosen.tolist() if few else [], fontsize="small")
    axes.grid(visible=False, axis="x")
    which = "channel" if few else f"{len(chosen)} of {len(mean)} channels" if len(chosen) < len(mean) else "channels"
    axes.set_xlabel(f"{which}, in ascending order of the remembered mean")
    axes.set_ylabel(f"input of {printable(layer, 24)}")
    axes.autoscale_view(scalex=False)
    name_ends(figure, axes, range(len(chosen)), lines, colors)
    return figure


@style()
def running_statistic(
    batch_values: Sequence[float],
    running: Sequence[float],
    target: float,
    *,
    name: str = "mean",
    title: str | None = None,
) -> Figure:
    """How a running statistic forgets where it began: a dot for each batch, the running value, and where it should go.

    Args:
        batch_values: of every batch, from the first.
        running: after every batch.
        target: the statistic of all the data.
        name: of the statistic.
        title: a sentence that says what to see; tells the last running value and the target if None.

    Raises:
        DataError: no batches, or not a running value for each.
    """
    if len(batch_values) == 0 or len(running) != len(batch_values):
        raise DataError(f"{len(running)} running values for {len(batch_values)} batches: expected one after each")
    name, count, colors = printable(name, 14), len(running), (MUTED, INK, MUTED)
    figure, axes = canvas(3.4)
    batches = f"{count} batches" if count > 1 else "1 batch"
    reached, aim = minus(f"{running[-1]:.3g}"), minus(f"{target:.3g}")
    set_title(figure, title or f"After {batches} the running {name} is {reached}; the target is {aim}")
    x = range(1, count + 1)
    axes.plot(x, batch_values, color="#9a9aa2", marker="o", markersize=6 if count <= 60 else 3.5, linestyle="")
    axes.axhline(target, color=MUTED, linestyle="--", linewidth=1.6)
    axes.plot(x, running, color=INK, marker="o" if count == 1 else "", markersize=4)
    axes.set_xlim(0, count + 1)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.set_xlabel("batch")
    axes.set_ylabel(name)
    ends = {f"● {name} of a batch": batch_values, f"━ running {name}": running, "╌ target": [target] * count}
    name_ends(figure, axes, x, ends, dict(zip(ends, colors, strict=True)))
    return figure


@style()
def value_ranges(
    values: Mapping[str, Float[Tensor, "n"]],
    ranges: Mapping[str, tuple[float, float]],
    *,
    unit: str,
    title: str | None = None,
) -> Figure:
    """The values that images of each source bring to one place, and the range that calibration chose for them.

    Heights are logarithms of counts, each row to its own highest, so that tails are seen; what lies outside the
    range, and will be clipped, is pale.

    Args:
        values: by source, from top to bottom.
        ranges: (low, high) for each source.
        unit: what the values are: "input of block 3".
        title: a sentence that says what to see; tells the widest range beside the narrowest if None.

    Raises:
        DataError: no sources, a source without values or without a range, or a range that ends before it begins.
    """
    if not values or set(values) != set(ranges):
        raise DataError(f"values of {sorted(values)} and ranges of {sorted(ranges)}: expected one of each by source")
    numbers = {source: of[np.isfinite(of)] for source, of in ((name, _numbers(of)) for name, of in values.items())}
    for source, (low, high) in ranges.items():
        if len(numbers[source]) == 0 or not low <= high:
            count = len(numbers[source])
            raise DataError(f"{source!r}: {count} finite values, range {low} to {high}: expected some, and low first")
    least = min(min(ranges[source][0], float(numbers[source].min())) for source in values)
    most = max(max(ranges[source][1], float(numbers[source].max())) for source in values)
    longest = max(wide(minus(f"{end:.3g}")) for chosen in ranges.values() for end in chosen)
    room = max(0.04, (longest + 9) / 400) * (most - least) or 1.0
    figure, axes = canvas(1.35 + 0.92 * len(values))
    set_title(figure, title or _range_sentence(ranges))
    axes.set_xlim(least - room, most + room)
    axes.set_ylim(len(values) - 0.93, -0.97)
    for row, source in enumerate(values):
        _row(axes, row, numbers[source], ranges[source], color_of(source), (least, most))
    axes.set_yticks([row - 0.28 for row in range(len(values))], [printable(source, 24) for source in values])
    for label, source in zip(axes.get_yticklabels(), values, strict=True):
        label.set(color=color_of(source), fontweight="bold")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.set_xlabel(f"{printable(unit, 60)} (heights: log of the count)")
    settle(figure)
    return figure


def _numbers(values: Tensor) -> Any:
    return values.detach().cpu().double().numpy()


def _distances(mean: Tensor, std: Tensor, found: Tensor) -> Any:
    """|found - remembered| in remembered std; infinite where a channel that never varies does."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.abs(_numbers(found) - _numbers(mean)) / _numbers(std)


def _remembered(axes: Axes, x: Any, center: Any, width: Any) -> None:
    boxes = [Rectangle((at - 0.44, c - w), 0.88, 2 * w) for at, c, w in zip(x, center, width, strict=True)]
    axes.add_collection(PatchCollection(boxes, facecolor="#e6e6ea", edgecolor="none"))
    dashes = "--" if len(x) <= 24 else "-"  # of many channels, each centre is one dash
    axes.hlines(center, x - 0.4, x + 0.4, color=MUTED, linestyle=dashes, linewidth=1.3)


def _row(
    axes: Axes, row: int, values: Any, chosen: tuple[float, float], color: str, everything: tuple[float, float]
) -> None:
    """A histogram that stands on `row`, pale where it is outside the range, and the range as a bracket over it."""
    (low, high), (least, most) = chosen, everything
    bins = (least, most) if most > least else (least - 0.5, most + 0.5)
    counts, edges = np.histogram(values, bins=_BINS, range=bins)
    heights = 0.5 * np.log1p(counts) / np.log1p(max(1, counts.max()))
    inside = (edges[1:] >= low) & (edges[:-1] <= high)
    axes.axhline(row, color=RULE, linewidth=0.8)
    axes.stairs(row - heights, edges, baseline=row, fill=True, color=color, alpha=0.3, linewidth=0)
    axes.stairs(row - heights * inside, edges, baseline=row, fill=True, color=color, linewidth=0)
    over = row - 0.66
    axes.plot([low, low, high, high], [over + 0.1, over, over, over + 0.1], color=color, linewidth=1.8)
    for end, side, gap in ((low, "right", -5), (high, "left", 5)):
        axes.annotate(
            minus(f"{end:.3g}"),
            xy=(end, over),
            xytext=(gap, 0),
            textcoords="offset points",
            color=color,
            ha=side,
            va="center_baseline",
        )


def _range_sentence(ranges: Mapping[str, tuple[float, float]]) -> str:
    widths = {source: high - low for source, (low, high) in ranges.items()}
    widest, narrowest = max(widths, key=widths.__getitem__), min(widths, key=widths.__getitem__)
    low, high = (minus(f"{end:.3g}") for end in ranges[widest])
    if len(widths) == 1 or widths[narrowest] <= 0:
        return f"The range for {widest} goes from {low} to {high}"
    ratio = widths[widest] / widths[narrowest]
    if ratio < 1.05:
        return f"Every source asks for nearly the same range, {low} to {high}"
    return f"{widest} asks for {short(ratio)} times the range of {narrowest}"

"""How diverse images are: a channel's distribution, its statistics sample by sample, sets of images in a plane."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.figures.labels import minus, short, wide
from dfqlab.figures.style import INK, MUTED, RULE, WIDTH, color_of, place, printable, sheet, style
from dfqlab.measures import (
    PrincipalProjection,
    kernel_density,
    peak_density,
    shared_bandwidth,
    wasserstein_to_gaussian,
)

_ROW = 0.78
_BINS = 72
_SPIKE = 1.8  # heights of the Gaussian: a density that is higher is cut off
_MOST = 6  # sources in one figure
_DENSITY_PIXELS = 90
_STEPS = [1, 2, 5, 10]


@style()
def activation_densities(
    values: Mapping[str, Float[Tensor, "_"]], mean: float, std: float, *, of: str, title: str | None = None
) -> Figure:
    """What images of each source bring to one channel, over BatchNorm's Gaussian (DSG, Fig. 2 a, b).

    A row for each source, its density filled, the same dashed Gaussian over each, and how far they are apart beside it.

    Args:
        values: all of the channel, as `measures.channel_activations` gives them, by source; at most 6.
        mean, std: what BatchNorm remembers.
        of: what the values are: "channel 3 of block 2".
        title: a sentence that says what to see; tells the nearest and the farthest source if None.

    Raises:
        DataError: no sources, more than 6, none or no finite values of one, or a std that is not positive.
    """
    _check_sources(values)
    told = torch.tensor(float(mean), dtype=torch.float64), torch.tensor(float(std), dtype=torch.float64)
    distances = {source: float(wasserstein_to_gaussian(x.detach().cpu(), *told)) for source, x in values.items()}
    numbers = {source: x.detach().cpu().double().numpy() for source, x in values.items()}
    low = min(mean - 3.4 * std, *(float(np.quantile(x, 0.002)) for x in numbers.values()))
    high = max(mean + 3.4 * std, *(float(np.quantile(x, 0.998)) for x in numbers.values()))
    names = {source: printable(source, 22) for source in values}
    left = 0.2 + 1.09 * max(wide(name) for name in names.values()) / 72
    right = 1.05
    figure = sheet(title or _distance_sentence(distances), _ROW * len(values) + 0.85)
    axes = place(figure, left, 0.55, WIDTH - left - right, _ROW * len(values) + 0.25)
    x = np.linspace(low, high, 400)
    gaussian = np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    edges = np.linspace(low, high, _BINS + 1)
    densities = {
        source: np.histogram(of, edges)[0] / (len(of) * (edges[1] - edges[0]) * gaussian.max())
        for source, of in numbers.items()
    }
    highest = min(_SPIKE, max(1.0, *(heights.max() for heights in densities.values())))
    unit = 0.84 / highest
    for row, source in enumerate(values):
        color = color_of(source)
        heights = densities[source]
        drawn = row - unit * np.minimum(heights, highest)
        axes.axhline(row, color=RULE, linewidth=0.8)
        axes.stairs(drawn, edges, baseline=row, fill=True, color=color, alpha=0.45, linewidth=0)
        axes.stairs(drawn, edges, baseline=row, color=color, linewidth=1.2)
        axes.plot(x, row - unit * gaussian / gaussian.max(), color=INK, linestyle="--", linewidth=1.6)
        axes.annotate(
            f"{short(distances[source])} std", xy=(1, row - 0.2), xycoords=("axes fraction", "data"), xytext=(10, 0),
            textcoords="offset points", color=color, fontweight="bold", va="center",
        )  # fmt: skip
    axes.annotate(
        "W₁", xy=(1, -0.62), xycoords=("axes fraction", "data"), xytext=(10, 0), textcoords="offset points",
        color=MUTED, va="center",
    )  # fmt: skip
    axes.set(xlim=(low, high), ylim=(len(values) - 0.94, -0.98))
    axes.set_yticks([row - 0.2 for row in range(len(values))], list(names.values()))
    for label, source in zip(axes.get_yticklabels(), values, strict=True):
        label.set(color=color_of(source), fontweight="bold")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(_locator((low, high), WIDTH - left - right))
    axes.set_xlabel(f"input of {printable(of, 36)} (╌ what BatchNorm remembers)")
    return figure


@style()
def sample_statistics_scatter(
    found: Mapping[str, tuple[Float[Tensor, "_"], Float[Tensor, "_"]]],
    mean: float,
    std: float,
    *,
    of: str,
    title: str | None = None,
) -> Figure:
    """Mean and std of every image in one channel, a panel a source, around what BatchNorm remembers (DSG, Fig. 6).

    All panels have the same axes; under each name stands the variance of both over images, in units of std².

    Args:
        found: mean and std of each image, by source; at most 6.
        mean, std: what BatchNorm remembers.
        of: what the values are: "channel 3 of block 2".
        title: a sentence that says what to see; tells which source's means vary most and least if None.

    Raises:
        DataError: no sources, more than 6, not a mean and a std for each image, or a std that is not positive.
    """
    for source, pair in found.items():
        if pair[0].shape != pair[1].shape:
            raise DataError(
                f"{source!r} has {len(pair[0])} means and {len(pair[1])} stds: expected one of each an image"
            )
    if not std > 0:
        raise DataError(f"std={std}: expected a positive number")
    numbers = {source: tuple(part.detach().cpu().double() for part in pair) for source, pair in found.items()}
    _check_sources({source: torch.cat(pair) for source, pair in numbers.items()})
    variances = {s: [float((p / std).var(correction=0)) for p in pair] for s, pair in numbers.items()}
    across = _limits([mean, *(float(v) for pair in numbers.values() for v in pair[0])])
    up = _limits([std, *(float(v) for pair in numbers.values() for v in pair[1])])
    figure, panels = _panels(
        title or _variance_sentence({source: of_mean for source, (of_mean, _) in variances.items()}),
        {s: f"var {short(a)} and {short(b)}" for s, (a, b) in variances.items()},
        f"mean of an image, input of {printable(of, 30)}", "its std", across, up,
    )  # fmt: skip
    for axes, (source, (means, stds)) in zip(panels, numbers.items(), strict=True):
        axes.axvline(mean, color=INK, linestyle="--", linewidth=1.1)
        axes.axhline(std, color=INK, linestyle="--", linewidth=1.1)
        axes.plot(
            means.numpy(), stds.numpy(), color=color_of(source), marker="o", markersize=4, linestyle="", alpha=0.5,
            markeredgewidth=0,
        )  # fmt: skip
        axes.plot([mean], [std], color=INK, marker="D", markersize=7, markeredgecolor="white")
    return figure


@style()
def projection_panels(projection: PrincipalProjection, *, title: str | None = None) -> Figure:
    """Sets of images in the plane of their principal components, with density and peak (DSG, Fig. 2 e, f).

    All panels have the same axes, the same kernel and the same shade for the same density (it grows as its root); the
    cross is the peak, and its density the share of the points for each unit of area.

    Args:
        projection: as `measures.principal_projection` gives it; at most 6 sets.
        title: a sentence that says what to see; tells the highest peak beside the lowest if None.

    Raises:
        DataError: no sets, more than 6, or points on one line.
    """
    points = {name: of.detach().cpu().double() for name, of in projection.points.items()}
    _check_sources({name: of.flatten() for name, of in points.items()})
    bandwidth = shared_bandwidth(points.values())
    peaks = {name: peak_density(of, bandwidth) for name, of in points.items()}
    highest = max(peak.density for peak in peaks.values())
    everything = torch.cat(list(points.values()))
    around = 2 * bandwidth.diagonal().sqrt()
    across, up = (
        _limits([float(everything[:, axis].min() - around[axis]), float(everything[:, axis].max() + around[axis])], 0)
        for axis in (0, 1)
    )
    first, second = (f"{100 * share:.0f} %" for share in projection.explained)
    figure, panels = _panels(
        title or _peak_sentence({name: peak.density for name, peak in peaks.items()}),
        {name: f"peak density {short(peak.density)}" for name, peak in peaks.items()},
        f"first component ({first} of the variance)", f"second ({second})", across, up,
    )  # fmt: skip
    grid_x, grid_y = (torch.linspace(*ends, _DENSITY_PIXELS, dtype=torch.float64) for ends in (across, up))
    for axes, (name, of) in zip(panels, points.items(), strict=True):
        density = kernel_density(of, torch.cartesian_prod(grid_x, grid_y), bandwidth)
        axes.imshow(
            density.reshape(_DENSITY_PIXELS, _DENSITY_PIXELS).T.numpy(), extent=(*across, *up), origin="lower",
            aspect="auto", cmap=_to(color_of(name)), norm=PowerNorm(0.5, 0, highest), interpolation="bilinear",
        )  # fmt: skip
        axes.plot(
            *of.T.numpy(), color=color_of(name), marker="o", markersize=3.4, linestyle="", alpha=0.8, markeredgewidth=0
        )
        axes.plot(*peaks[name].at, color="white", marker="P", markersize=11, markeredgecolor=INK, markeredgewidth=1)
        axes.grid(visible=False)
    return figure


def _check_sources(values: Mapping[str, Tensor]) -> None:
    if not 0 < len(values) <= _MOST:
        raise DataError(f"{len(values)} sources: expected 1 to {_MOST}")
    for source, numbers in values.items():
        if len(numbers) == 0 or not torch.isfinite(numbers).all():
            raise DataError(f"{source!r} has {len(numbers)} values: expected some, all finite")


def _panels(
    title: str,
    words: Mapping[str, str],
    below: str,
    beside: str,
    across: tuple[float, float],
    up: tuple[float, float],
) -> tuple[Figure, list[Axes]]:
    """Small axes of one size and limits, in rows of at most three, two of two where there are four, words over each."""
    columns = len(words) if len(words) < 4 else 2 if len(words) == 4 else 3
    lines = -(-len(words) // columns)
    gap, over, under = 0.16, 0.62, 0.6
    left = 0.5 + _widest_tick(MaxNLocator(5, steps=_STEPS), up) / 72
    width = min(3.2, (WIDTH - left - 0.1 - gap * (columns - 1)) / columns)
    height = min(2.0, 0.92 * width)
    figure = sheet(title, lines * (height + over) + under)
    panels = []
    for index, (name, text) in enumerate(words.items()):
        row, column = divmod(index, columns)
        axes = place(figure, left + column * (width + gap), under + (lines - 1 - row) * (height + over), width, height)
        for shift, line, look in (
            (0.27, printable(name, int(width * 8.2)), {"color": color_of(name), "fontweight": "bold"}),
            (0.06, text, {"color": MUTED, "fontsize": 11}),
        ):
            axes.text(0, 1 + shift / height, line, transform=axes.transAxes, va="bottom", **look)
        axes.tick_params(labelleft=column == 0, labelbottom=index + columns >= len(words), labelsize=11)
        axes.set(xlim=across, ylim=up)
        axes.xaxis.set_major_locator(_locator(across, width))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        panels.append(axes)
    wide_, tall = figure.get_size_inches()
    figure.text((left + (columns * (width + gap) - gap) / 2) / wide_, 0.12 / tall, below, color=MUTED, ha="center")
    middle = under + (lines * (height + over) - over) / 2
    figure.text(0.08 / wide_, middle / tall, beside, color=MUTED, rotation="vertical", va="center")
    return figure, panels


def _locator(limits: tuple[float, float], inches: float) -> MaxNLocator:
    """At most seven numbers, as many as fit, none at the very edge."""
    widest = _widest_tick(MaxNLocator(7, steps=_STEPS), limits)
    return MaxNLocator(max(1, min(7, int(72 * inches / (widest + 18)))), steps=_STEPS, prune="both")


def _widest_tick(locator: MaxNLocator, limits: tuple[float, float]) -> float:
    """In points, about."""
    inside = [value for value in locator.tick_values(*limits) if limits[0] <= value <= limits[1]]
    return max((wide(minus(f"{value:.6g}")) for value in inside), default=20.0)


def _limits(values: list[float], room: float = 0.06) -> tuple[float, float]:
    low, high = min(values), max(values)
    spare = room * (high - low) if high > low else max(0.5 * abs(high), 0.5)
    return low - spare, high + spare


def _to(color: str) -> LinearSegmentedColormap:
    """From white to a paler tone of a colour, on which points in the colour itself are seen."""
    r, g, b = ((1 + 2 * part) / 3 for part in to_rgb(color))
    return LinearSegmentedColormap.from_list(color, [(1.0, 1.0, 1.0), (r, g, b)])


def _distance_sentence(distances: Mapping[str, float]) -> str:
    order = sorted(distances, key=distances.__getitem__)
    first = f"{order[0]} is {short(distances[order[0]])} std from BatchNorm's Gaussian"
    return first if len(order) == 1 else f"{first}, {order[-1]} {short(distances[order[-1]])}"


def _variance_sentence(variances: Mapping[str, float]) -> str:
    most, least = (pick(variances, key=variances.__getitem__) for pick in (max, min))
    if most == least or variances[least] <= 0:
        return f"From image to image, the mean varies by {short(variances[most])} on {most}"
    return f"The mean varies {short(variances[most] / variances[least])} times as much on {most} as on {least}"


def _peak_sentence(densities: Mapping[str, float]) -> str:
    most, least = (pick(densities, key=densities.__getitem__) for pick in (max, min))
    if most == least:
        return f"Where {most} is densest"
    return f"{most} is {short(densities[most] / densities[least])} times as dense at its densest as {least}"

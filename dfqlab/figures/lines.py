"""Lines with their names at their ends: losses over steps, and what BatchNorm layers saw."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from dfqlab.errors import DataError
from dfqlab.figures.labels import evenly, median_sentence, name_ends
from dfqlab.figures.style import COLORS, INK, canvas, color_of, printable, set_title, style

DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "-",
    (0, (1, 1.6)),
    (0, (6, 2, 1, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
)
_NAMED_LAYERS = 8
_LONGEST_NAME = 20


@style()
def loss_curve(
    steps: Sequence[int], values: Mapping[str, Sequence[float]], *, source: str | None = None, title: str | None = None
) -> Figure:
    """What each term of an objective was over the steps of a job, on a logarithmic axis where that spans decades.

    Args:
        steps: at which the values were read.
        values: a value for each step (NaN where there is none), by the name of the term.
        source: the recipe whose colour the lines take.
        title: a sentence that says what to see; tells the first and last value of the first term if None.

    Raises:
        DataError: no steps, no terms, or not a value for each step.
    """
    _require(values, len(steps), "steps")
    name, first = next(iter(values.items()))
    if title is None:
        title = f"The {name} goes from {first[0]:.3g} to {first[-1]:.3g} by step {steps[-1]:,}"
    figure, axes = canvas(3.4)
    set_title(figure, title)
    color = INK if source is None else color_of(source)
    for index, line in enumerate(values.values()):
        axes.plot(steps, _finite(line), color=color, linestyle=DASHES[index % len(DASHES)])
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.margins(x=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    fit_scale(axes, values)
    name_ends(figure, axes, steps, values, dict.fromkeys(values, color))
    return figure


@style()
def batch_norm_view(
    layers: Sequence[str], distances: Mapping[str, Sequence[float]], *, title: str | None = None
) -> Figure:
    """How far what each source of images does to every BatchNorm layer is from what the layer remembers.

    Args:
        layers: module paths in forward order; at most eight of them are written out.
        distances: in units of the remembered standard deviation, one for each layer, by source.
        title: a sentence that says what to see; tells the medians of the sources if None (of many, the extremes).

    Raises:
        DataError: no layers, no sources, or not a distance for each layer.
    """
    figure, axes = _by_layer(layers, distances, title or median_sentence(distances, of="layer"))
    axes.set_ylabel("distance from what is\nremembered (std)")
    fit_scale(axes, distances)
    name_ends(figure, axes, range(len(layers)), distances, {source: color_of(source) for source in distances})
    return figure


@style()
def layer_errors(judgements: Mapping[str, Mapping[str, float]], *, title: str | None = None) -> Figure:
    """What each layer of a quantized network loses by itself, as several judges see it.

    Args:
        judgements: SQNR in dB by layer (module paths in forward order), by judge; a judge may leave layers out.
        title: a sentence that says what to see; tells the worst layer of the first judge if None.

    Raises:
        DataError: no judges, or no layers.
    """
    layers = list(dict.fromkeys(layer for by_layer in judgements.values() for layer in by_layer))
    lines = {judge: [found.get(layer, math.nan) for layer in layers] for judge, found in judgements.items()}
    _require(lines, len(layers), "layers")
    judge, first = next(iter(judgements.items()))
    worst = min(first or {layers[0]: math.nan}, key=lambda layer: first.get(layer, math.nan))
    figure, axes = _by_layer(layers, lines, title or f"The layer {worst} loses most by itself, says {judge}")
    axes.set_ylabel("signal to quantization\nnoise, a layer alone (dB)")
    fit_scale(axes, lines)
    name_ends(figure, axes, range(len(layers)), lines, {judge: color_of(judge) for judge in lines})
    return figure


def _by_layer(layers: Sequence[str], lines: Mapping[str, Sequence[float]], title: str) -> tuple[Figure, Axes]:
    """A line for each name over the layers of a network."""
    _require(lines, len(layers), "layers")
    figure, axes = canvas(4.4)
    set_title(figure, title)
    for name, line in lines.items():
        color, marker = color_of(name), "o" if len(layers) <= 24 else ""
        below = color == COLORS["real"]  # where nothing is between them, the recipe is seen
        axes.plot(
            range(len(layers)), _finite(line), color=color, marker=marker, markersize=5, zorder=2.0 if below else 2.1
        )
    named = evenly(len(layers), _NAMED_LAYERS)
    axes.set_xticks(named, [_tail(layers[index]) for index in named], rotation=32, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", labelsize="small")
    axes.set_xlim(-0.3, len(layers) - 0.7)
    axes.grid(visible=False, axis="x")
    return figure, axes


def _require(lines: Mapping[str, Sequence[float]], length: int, of: str) -> None:
    if not lines or length == 0:
        raise DataError(f"nothing to draw: {len(lines)} lines over {length} {of}")
    for name, line in lines.items():
        if len(line) != length:
            raise DataError(f"{name!r} has {len(line)} values for {length} {of}")


def _finite(line: Sequence[float]) -> list[float]:
    return [value if math.isfinite(value) else math.nan for value in line]


def fit_scale(axes: Axes, lines: Mapping[str, Sequence[float]]) -> None:
    """A logarithmic axis where positive values span more than a decade, else a linear one from zero."""
    values = [value for line in lines.values() for value in line if math.isfinite(value)]
    positive = [value for value in values if value > 0]
    if positive and min(values) >= 0 and max(positive) > 12 * min(positive):
        decades = math.log10(max(positive) / min(positive))
        axes.set_yscale("log")
        axes.set_ylim(min(positive) / 1.25, max(positive) * 1.25)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 1.6 else (1, 3) if decades < 3 else (1,)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif values:
        low, high = min(0.0, *values), max(0.0, *values)
        axes.set_ylim(low, high + 0.06 * (high - low or 1))


def _tail(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST_NAME else "…" + name[1 - _LONGEST_NAME :]

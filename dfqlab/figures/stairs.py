"""What a grid does to weights: the stairs that they climb, the error that this makes, the part that a channel uses."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.figures.labels import minus, short
from dfqlab.figures.style import (
    CLIPPING,
    INK,
    MUTED,
    ROUNDING,
    WIDTH,
    canvas,
    place,
    set_title,
    settle,
    sheet,
    style,
)

_PALE = "#c3c3c9"
_BINS = 48
HATCHES = {"rounding": "////", "clipping": "xxxx"}
ERROR_COLORS = {"rounding": ROUNDING, "clipping": CLIPPING}
_MOST_CHANNELS = 32


@style()
def staircase(
    values: Float[Tensor, "n"],
    quantized: Float[Tensor, "n"],
    clipped: Bool[Tensor, "n"],
    stairs: Sequence[tuple[Float[Tensor, "k"], Float[Tensor, "k"]]],
    *,
    title: str | None = None,
) -> Figure:
    """What comes out for every number that goes in, where the weights are, and the error that this makes.

    Its places are fixed and nothing is solved, so that it follows a slider.

    Args:
        values, quantized: weights before and after.
        clipped: which of them lie outside the grid: theirs is clipping error, that of all others rounding error.
        stairs: (input, output) for a channel each, ascending; the first is the one looked at, others are drawn thin.
        title: a sentence that says what to see; tells the error's share of the signal's energy if None.

    Raises:
        DataError: no values or no stairs, an input without its output, or values that are not finite.
    """
    if len(values) == 0 or not stairs:
        raise DataError(f"nothing to draw: {len(values)} values and {len(stairs)} stairs, expected one of each or more")
    for index, (before, after) in enumerate(stairs):
        if before.shape != after.shape or before.dim() != 1:
            shapes = f"{tuple(before.shape)} and {tuple(after.shape)}"
            raise DataError(f"stairs {index} go from {shapes}: expected as many outputs as inputs, one after the other")
    x, y, outside = (tensor.detach().cpu().numpy() for tensor in (values.double(), quantized.double(), clipped))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("expected finite values, got NaN or infinity; try values[values.isfinite()]")
    error = y - x
    energy = {"rounding": float((error[~outside] ** 2).sum()), "clipping": float((error[outside] ** 2).sum())}
    figure = sheet(title or _error_sentence(energy, float((x**2).sum())), 3.35)
    steps = [tuple(end.detach().cpu().double().numpy() for end in stair) for stair in stairs]
    _climb(place(figure, 0.82, 0.62, 3.05, 2.66), x, steps)
    _errors(place(figure, 4.62, 0.62, WIDTH - 4.62 - 0.26, 1.5), error, outside)
    key = place(figure, 4.62, 2.2, WIDTH - 4.62 - 0.12, 1.08)
    for height, kind in ((0.57, "rounding"), (0.05, "clipping")):
        error_share(key, height, kind, energy, some=bool((~outside if kind == "rounding" else outside).any()))
    return figure


@style()
def channel_ranges(weight: Float[Tensor, "out n"], *, title: str | None = None) -> Figure:
    """From its smallest to its largest weight, a bar for each output channel, on the range of one scale for all.

    Args:
        weight: a row for each output channel; of more than 32 the first 32 are shown, and told of.
        title: a sentence that says what to see; tells the widest beside the narrowest channel if None.

    Raises:
        DataError: no channel, no weight in a channel, or weights that are not finite.
    """
    if weight.numel() == 0 or not bool(torch.isfinite(weight).all()):
        what = "NaN or infinity in it" if weight.numel() else f"shape {tuple(weight.shape)}"
        raise DataError(f"expected finite weights, a row for each output channel, got {what}; try weight.flatten(1)")
    rows = weight.detach().cpu().double()
    low, high, reach = rows.amin(dim=1), rows.amax(dim=1), float(rows.abs().max()) or 1.0
    shown = min(_MOST_CHANNELS, len(rows))
    low, high = low[:shown], high[:shown]
    spans = high - low
    figure, axes = canvas(1.75 + max(0.6, shown * (0.3 if shown <= 12 else 0.17)))
    set_title(figure, title or _span_sentence(spans))
    axes.axvspan(-reach, reach, facecolor="#ececf0", linewidth=0)
    axes.axvline(0, color="white", linewidth=1.6)
    axes.annotate(
        f"one scale for the whole tensor: {minus(f'{-reach:.2g}')} to {reach:.2g}",
        xy=(0, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        color=MUTED,
        ha="center",
        va="bottom",
    )
    axes.hlines(range(shown), low, high, color=INK, linewidth=8 if shown <= 12 else 5, capstyle="butt")
    order = [int(spans.argmax()), int(spans.argmin())]
    for channel in sorted(set(order)) if shown > 12 else range(shown):
        axes.annotate(
            f"{50 * float(spans[channel]) / reach:.0f} %" + (" used" if shown > 12 else ""),
            xy=(1.01, channel),
            xycoords=("axes fraction", "data"),
            color=INK if channel in order else MUTED,
            fontweight="bold" if channel in order else "normal",
            va="center_baseline",
        )
    if shown <= 12:
        axes.annotate(
            "used",
            xy=(1.01, 1),
            xycoords="axes fraction",
            xytext=(0, 4),
            textcoords="offset points",
            color=MUTED,
            va="bottom",
        )
    every = 1 if shown <= 12 else 4
    axes.set_yticks(range(0, shown, every), [str(channel) for channel in range(0, shown, every)])
    axes.set_ylim(shown - 0.4, -0.6)
    axes.set_xlim(-1.04 * reach, 1.04 * reach)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_ylabel("output channel" if shown == len(rows) else f"first {shown} of {len(rows)} channels")
    axes.set_xlabel("weight")
    settle(figure)
    return figure


def _error_sentence(energy: dict[str, float], signal: float) -> str:
    total = sum(energy.values())
    if total == 0:
        return "No error: every weight lies on the grid"
    if signal == 0:
        return "All of the energy is error: every weight was zero"
    percent = 100 * total / signal
    told = short(percent) if percent >= 0.01 else "< 0.01"
    return f"The error is {told} % of the signal's energy, mostly {max(energy, key=energy.__getitem__)}"


def _climb(axes: Axes, x: np.ndarray, stairs: Sequence[tuple[np.ndarray, ...]]) -> None:
    """The stairs and the diagonal that they should be, over a pale histogram of the weights."""
    first_in, first_out = stairs[0]
    ends = np.concatenate([x, first_in])
    low, high = _widened(float(np.nanmin(ends)), float(np.nanmax(ends)))
    bottom, top = _widened(min(low, float(first_out.min(initial=low))), max(high, float(first_out.max(initial=high))))
    room = 0.3 * (top - bottom)
    axes.set_xlim(low, high)
    axes.set_ylim(bottom - room, top)
    counts, edges = np.histogram(x, bins=_BINS, range=(low, high))
    heights = bottom - room + 0.27 / 0.3 * room * counts / max(1, counts.max())
    axes.stairs(heights, edges, baseline=bottom - room, fill=True, color=_PALE)
    axes.annotate(
        "where the weights are", xy=(0.985, 0.225), xycoords="axes fraction", color=MUTED, fontsize="small", ha="right"
    )
    others = [np.column_stack(stair) for stair in stairs[1:]]
    axes.add_collection(LineCollection(others, colors=_PALE, linewidths=0.8), autolim=False)
    axes.plot([bottom, top], [bottom, top], color=MUTED, linestyle="--", linewidth=1.4)
    axes.plot(first_in, first_out, color=INK, linewidth=2.2)
    at = low + 0.72 * (high - low)
    axes.annotate(
        "no error",
        xy=(at, at),
        xytext=(-10, 6),
        textcoords="offset points",
        color=MUTED,
        ha="right",
        va="bottom",
        annotation_clip=False,
    )
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(bottom, top)
    axes.set_yticks([tick for tick in ticks if bottom <= tick <= top])
    axes.set_xlabel("weight")
    axes.set_ylabel("after quantization", labelpad=2)


def _errors(axes: Axes, error: np.ndarray, outside: np.ndarray) -> None:
    """How many weights have which error, in a logarithm so that a few that were clipped are seen."""
    reach = float(np.abs(error).max()) or 1e-3
    most = 1
    for kind, chosen in (("rounding", error[~outside]), ("clipping", error[outside])):
        counts, edges = np.histogram(chosen, bins=_BINS + 1, range=(-1.02 * reach, 1.02 * reach))
        most = max(most, int(counts.max()))
        if len(chosen):
            color, heights, hatch = ERROR_COLORS[kind], np.maximum(counts, 0.5), HATCHES[kind]
            axes.stairs(heights, edges, baseline=0.5, fill=True, facecolor=color, alpha=0.3, linewidth=0)
            axes.stairs(heights, edges, baseline=0.5, fill=True, facecolor="none", edgecolor=color, hatch=hatch)
    axes.set_yscale("log")
    axes.set_ylim(0.5, 1.6 * max(10, most))
    tens = [10**power for power in range(math.ceil(math.log10(max(10, most))) + 1)]
    axes.set_yticks(tens, [str(ten).replace("000000", "M").replace("000", "k") for ten in tens])
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.set_xlim(-1.06 * reach, 1.06 * reach)
    decade = 10.0 ** math.floor(math.log10(reach))
    tick = decade * max(step for step in (1, 2, 5) if step == 1 or step * decade <= reach)
    axes.set_xticks([-tick, 0, tick], [minus(f"{end:.3g}") for end in (-tick, 0, tick)])
    axes.set_xlabel("quantized − weight")
    axes.set_ylabel("weights (log)")
    axes.yaxis.set_label_coords(-0.17, 0.5)  # whatever the ticks are


def error_share(
    key: Axes,
    height: float,
    kind: str,
    energy: dict[str, float],
    *,
    some: bool,
    of: str = "weight",
    hatches: Mapping[str, str] = HATCHES,
) -> None:
    """A kind of error in its colour and hatch, and its share of the squared error, if there is `some` of it."""
    key.set_axis_off()
    key.set(xlim=(0, 1), ylim=(0, 1))
    total, color = sum(energy.values()), ERROR_COLORS[kind]
    key.add_patch(Rectangle((0, height + 0.06), 0.09, 0.3, facecolor=color, alpha=0.3, linewidth=0))
    key.add_patch(Rectangle((0, height + 0.06), 0.09, 0.3, fill=False, edgecolor=color, hatch=hatches[kind]))
    percent = f"{100 * energy[kind] / total:.0f} % of the squared error" if total else "no error"
    if not some:
        percent = f"no {of} is {'clipped' if kind == 'clipping' else 'inside'}"
    text = f"{kind}: {percent}".replace(" of the", "\nof the").replace(f": no {of}", f":\nno {of}")
    key.text(0.12, height + 0.21, text, color=color, fontweight="bold", va="center", linespacing=1.1)


def _span_sentence(spans: Tensor) -> str:
    widest, narrowest = float(spans.max()), float(spans.min())
    if widest == 0:
        return "Every channel is one number over and over"
    if narrowest == 0:
        equal = int((spans == 0).sum())
        return f"{equal} of {len(spans)} channels {'is' if equal == 1 else 'are'} one number over and over"
    return f"The widest channel spans {short(widest / narrowest)} times the narrowest"


def _widened(low: float, high: float) -> tuple[float, float]:
    room = 0.03 * (high - low) or max(0.1 * abs(high), 1e-3)
    return low - room, high + room

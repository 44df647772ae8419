"""Where a range ends on the values that an activation takes: one rule beside another, and what each gives up."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.figures.labels import minus
from dfqlab.figures.stairs import ERROR_COLORS, HATCHES, error_share
from dfqlab.figures.style import INK, MUTED, RULE, WIDTH, place, printable, sheet, style

_BINS = 96
_HATCHES = {"rounding": "", "clipping": HATCHES["clipping"]}  # here most of a picture is rounded
_ROW = 0.3
_STEPS = [1, 2, 5, 10]


@style()
def ranges_by_rule(
    values: Float[Tensor, "_"],
    ranges: Mapping[str, tuple[float, float]],
    ratios: Mapping[str, float],
    *,
    of: str,
    title: str | None = None,
) -> Figure:
    """The values of one activation, and under them a bar from end to end of the range that each rule lays over them.

    Args:
        values: all of them, drawn as logarithms of their counts, so that tails are seen.
        ranges: (low, high) by rule, from top to bottom.
        ratios: of signal to error under each range, in dB.
        of: what the values are: "output of 3.body.3".
        title: a sentence that says what to see; tells the best and the worst rule if None.

    Raises:
        DataError: no rules, a rule without a ratio, a range that ends before it begins, or no finite values.
    """
    x = _checked(values)
    if not ranges or set(ranges) != set(ratios):
        raise DataError(f"ranges of {sorted(ranges)} and ratios of {sorted(ratios)}: expected one of each by rule")
    for rule, (low, high) in ranges.items():
        if not low <= high:
            raise DataError(f"{rule!r}: range {low} to {high}: expected low first")
    best, worst = max(ratios, key=ratios.__getitem__), min(ratios, key=ratios.__getitem__)
    told = {rule: minus(f"{ratio:.1f} dB") for rule, ratio in ratios.items()}
    title = title or f"Signal to error: {best} best, {told[best]}; {worst} worst, {told[worst]}"
    bars = _ROW * len(ranges) + 0.16
    figure = sheet(title, 0.58 + bars + 1.25)
    left, width = 1.3, WIDTH - 1.3 - 1.05
    lows, highs = zip(*ranges.values(), strict=True)
    least, most = min(float(x.min()), *lows), max(float(x.max()), *highs)
    room = 0.02 * (most - least) or 1.0
    limits = (least - room, most + room)
    _histogram(place(figure, left, 0.62 + bars, width, 1.1), x, limits)
    axes = place(figure, left, 0.58, width, bars)
    for row, (rule, (low, high)) in enumerate(ranges.items()):
        extreme = rule in (best, worst)
        axes.plot([low, high], [row, row], color=INK if extreme else MUTED, linewidth=7, solid_capstyle="butt")
        axes.annotate(
            told[rule], xy=(1.02, row), xycoords=("axes fraction", "data"),
            color=INK if extreme else MUTED, fontweight="bold" if extreme else "normal", va="center_baseline",
        )  # fmt: skip
    axes.annotate(
        "signal\nto error", xy=(1.02, 1), xycoords="axes fraction", xytext=(0, 4), textcoords="offset points",
        color=MUTED, fontsize="small", va="bottom",
    )  # fmt: skip
    axes.axvline(0, color=MUTED, linewidth=0.8, zorder=0.9)
    axes.set(xlim=limits, ylim=(len(ranges) - 0.4, -0.6))
    axes.set_yticks(range(len(ranges)), [printable(rule, 14) for rule in ranges])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=_STEPS))
    axes.set_xlabel(printable(of, 60))
    return figure


@style()
def clipped_values(
    values: Float[Tensor, "n"],
    quantized: Float[Tensor, "n"],
    clipped: Bool[Tensor, "n"],
    marks: Float[Tensor, "_"],
    *,
    of: str,
    title: str | None = None,
) -> Figure:
    """The values of one activation over the marks of its grid; both errors are told, what lies beyond cross-hatched.

    Its places are fixed and nothing is solved, so that it follows a slider.

    Args:
        values, quantized: before and after.
        clipped: which of them lie beyond the grid: theirs is clipping error, that of all others rounding error.
        marks: the reals that the codes stand for, ascending; of more than 32 only the ends are drawn.
        of: what the values are: "output of 3.body.3".
        title: a sentence that says what to see; tells the share of values that are clipped if None.

    Raises:
        DataError: no marks, or values that are not finite.
    """
    x = _checked(values)
    if len(marks) == 0 or values.shape != quantized.shape:
        raise DataError(f"{len(marks)} marks, {len(values)} values and {len(quantized)} after: expected as many after")
    outside = clipped.detach().cpu().numpy()
    error = quantized.detach().cpu().double().numpy() - x
    energy = {"rounding": float((error[~outside] ** 2).sum()), "clipping": float((error[outside] ** 2).sum())}
    figure = sheet(title or f"{100 * outside.mean():.2g} % of the values are clipped", 2.9)
    ruler = marks.detach().cpu().double().numpy()
    limits = (min(x.min(), ruler[0]), max(x.max(), ruler[-1]))
    room = 0.03 * (limits[1] - limits[0]) or 1.0
    axes = place(figure, 0.25, 0.62, 4.5, 2.2)
    half = (ruler[-1] - ruler[0]) / max(1, len(ruler) - 1) / 2  # a mark serves half a step on either side
    _histogram(axes, x, (limits[0] - room, limits[1] + room), beyond=(ruler[0] - half, ruler[-1] + half))
    axes.tick_params(axis="x", labelbottom=True)
    axes.set_ylim(-0.13, 1.05)
    shown = ruler if len(ruler) <= 32 else ruler[[0, -1]]
    axes.vlines(shown, -0.1, -0.01, color=INK, linewidth=2.2)
    axes.hlines(-0.055, ruler[0], ruler[-1], color=INK, linewidth=1.2)
    axes.set_xlabel(printable(f"{of} (heights: log of the count)", 60))
    key = place(figure, 5.05, 1.15, WIDTH - 5.05 - 0.1, 1.3)
    for height, kind in ((0.57, "rounding"), (0.05, "clipping")):
        some = bool((~outside if kind == "rounding" else outside).any())
        error_share(key, height, kind, energy, some=some, of="value", hatches=_HATCHES)
    return figure


def _checked(values: Tensor) -> np.ndarray:
    x: np.ndarray = values.detach().cpu().double().numpy()
    if x.size == 0 or not np.isfinite(x).all():
        what = "NaN or infinity" if x.size else "none"
        raise DataError(f"expected finite values, got {what}; try values[values.isfinite()]")
    return x


def _histogram(
    axes: Axes, x: np.ndarray, limits: tuple[float, float], beyond: tuple[float, float] | None = None
) -> None:
    """Logarithms of counts, cross-hatched beyond the ends of a grid."""
    counts, edges = np.histogram(x, _BINS, range=limits)
    heights = np.log1p(counts) / np.log1p(counts.max())
    if beyond is None:
        axes.stairs(heights, edges, fill=True, color="#c3c3c9", alpha=0.5)
    else:
        lost = (edges[1:] <= beyond[0]) | (edges[:-1] >= beyond[1])
        for kind, part in (("rounding", heights * ~lost), ("clipping", heights * lost)):
            color, hatch = ERROR_COLORS[kind], _HATCHES[kind]
            axes.stairs(part, edges, fill=True, facecolor=(color, 0.3), edgecolor=color, hatch=hatch, linewidth=0)
    axes.axvline(0, color=RULE, linewidth=0.8, zorder=0.9)
    axes.set(xlim=limits, ylim=(0, 1.05))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="x", labelbottom=False)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=_STEPS))

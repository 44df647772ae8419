"""Bits shared out among layers, and what a network of so many bits still agrees with."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dfqlab.errors import DataError
from dfqlab.figures.style import INK, MUTED, WIDTH, place, printable, sheet, style
from dfqlab.measures import Interval

_ROW = 0.24


@style()
def bits_by_layer(bits: Mapping[str, int], sizes: Mapping[str, int], *, title: str | None = None) -> Figure:
    """A bar for each layer as long as its weights are wide, with how many weights that concerns.

    Its places are fixed and nothing is solved, so that it follows a slider.

    Args:
        bits: of each layer's weights, 2 to 8, from the first layer down.
        sizes: how many weights each has.
        title: a sentence that says what to see; tells the mean of bits over weights if None.

    Raises:
        DataError: no layers, or bits and sizes of different ones.
    """
    if not bits or set(bits) != set(sizes):
        raise DataError(f"bits of {sorted(bits)} and sizes of {sorted(sizes)}: expected one of each by layer")
    total = sum(sizes.values())
    mean = sum(bits[layer] * size for layer, size in sizes.items()) / total
    figure = sheet(title or f"A weight takes {mean:.2f} bits on average", 0.66 + _ROW * len(bits) + 0.1)
    axes = place(figure, 1.6, 0.62, WIDTH - 1.6 - 1.9, _ROW * len(bits) + 0.1)
    for row, (layer, width) in enumerate(bits.items()):
        axes.barh([row], [width], color=INK, height=0.62)
        axes.annotate(
            f"{width}", xy=(width, row), xytext=(-5, 0), textcoords="offset points", color="white", fontweight="bold",
            ha="right", va="center_baseline", fontsize="small",
        )  # fmt: skip
        axes.annotate(
            f"{sizes[layer]:,} weights", xy=(1.03, row), xycoords=("axes fraction", "data"), color=MUTED,
            va="center_baseline", fontsize="small",
        )  # fmt: skip
    axes.set(xlim=(0, 8), ylim=(len(bits) - 0.45, -0.55))
    axes.set_xticks(range(0, 9, 2))
    axes.set_yticks(range(len(bits)), [printable(layer, 18) for layer in bits], fontsize="small")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("bits of a weight")
    return figure


@style()
def bit_frontier(
    mixed: Mapping[float, Interval], uniform: Mapping[float, Interval], *, measure: str, title: str | None = None
) -> Figure:
    """A share over the bits that a weight takes on average: a width for each layer, beside one width for all.

    Args:
        mixed: a share with its interval, by mean bits.
        uniform: the same, by the width of all layers.
        measure: what the shares are: "agreement with the teacher on 599 digits".
        title: a sentence that says what to see; compares both where they differ most if None.

    Raises:
        DataError: no share of either.
    """
    if not mixed or not uniform:
        raise DataError(f"{len(mixed)} mixed shares and {len(uniform)} uniform ones: expected some of each")
    figure = sheet(title or _compared(mixed, uniform, measure), 3.0)
    axes = place(figure, 0.78, 0.62, WIDTH - 0.78 - 2.1, 2.3)
    for shares, color, line, marker in ((mixed, INK, "-", "o"), (uniform, MUTED, "--", "s")):
        widths = sorted(shares)
        told = [shares[width] for width in widths]
        reach = [  # of none and of all, an interval's end can be off by a float's last bit
            [100 * max(0.0, share.value - share.low) for share in told],
            [100 * max(0.0, share.high - share.value) for share in told],
        ]
        axes.errorbar(
            widths, [100 * share.value for share in told], reach, color=color, linestyle=line, marker=marker,
            markersize=4, elinewidth=1.5, capsize=4, capthick=1.5,
        )  # fmt: skip
    for height, sign, words, color in (
        (0.62, "●", "a width for\neach layer", INK),
        (0.3, "■", "one width\nfor all", MUTED),
    ):
        axes.annotate(
            f"{sign} {words}", xy=(1.04, height), xycoords="axes fraction", color=color, fontweight="bold", va="center"
        )
    axes.set_ylim(0, 102)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.set_xlabel("bits that a weight takes on average")
    axes.set_ylabel(f"{printable(_in_short(measure), 24)} (%)")
    return figure


def _compared(mixed: Mapping[float, Interval], uniform: Mapping[float, Interval], measure: str) -> str:
    both = sorted(set(mixed) & set(uniform))
    if not both:
        return f"How does {measure} grow with bits?"
    told = max(both, key=lambda width: abs(mixed[width].value - uniform[width].value))
    own, same = f"{100 * mixed[told].value:.1f} %", f"{100 * uniform[told].value:.1f} %"
    return f"{told:g} bits on average: {_in_short(measure)} {own} with a width for each layer, {same} with one for all"


def _in_short(measure: str) -> str:
    return measure.split(" with ")[0].split(" on ")[0]

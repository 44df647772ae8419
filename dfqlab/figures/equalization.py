"""Two layers that share channels: how far each reaches, and where equalization lets both meet."""

from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.figures.labels import short
from dfqlab.figures.style import INK, MUTED, RULE, WIDTH, place, printable, sheet, style

_ROW = 0.27
_MOST_CHANNELS = 32
_COLORS = "#0072b2", "#b84300"
_TICKS = [digit * 10.0**power for power in range(-4, 5) for digit in (1, 2, 5)]


@style()
def meeting_reaches(
    first: Float[Tensor, "_"],
    second: Float[Tensor, "_"],
    met: Float[Tensor, "_"],
    *,
    names: tuple[str, str],
    title: str | None = None,
) -> Figure:
    """The largest weight by which one layer writes each channel, and by which the next reads it, before and after.

    Args:
        first, second: magnitudes before, above 0; of more than 32 channels the first 32 are shown.
        met: of both layers after equalization.
        names: of the layers.
        title: a sentence that says what to see; tells how far channels are apart in both layers if None.

    Raises:
        DataError: no channel, not a magnitude for each, or one that is not above 0.
    """
    if not len(first) == len(second) == len(met) > 0 or not all(bool((r > 0).all()) for r in (first, second, met)):
        shapes = f"{len(first)}, {len(second)} and {len(met)}"
        raise DataError(f"{shapes} magnitudes: expected as many of each, one or more, all above 0")
    title = title or _apart(first, second, met, names)
    shown = min(_MOST_CHANNELS, len(first))
    one, two, both = (reach[:shown].detach().cpu().double().numpy() for reach in (first, second, met))
    figure = sheet(title, 0.98 + _ROW * shown)
    axes = place(figure, 0.75, 0.6, WIDTH - 0.75 - 0.3, _ROW * shown)
    rows = list(range(shown))
    axes.hlines(rows, one, two, color=RULE, linewidth=2.4)
    axes.set_xscale("log")
    legend = []
    for reach, color, marker, sign, name in (
        (one, _COLORS[0], "o", "●", printable(names[0], 18)),
        (two, _COLORS[1], "^", "▲", printable(names[1], 18)),
        (both, INK, "D", "◆", "both, equalized"),
    ):
        axes.plot(reach, rows, color=color, marker=marker, markersize=8, linestyle="")
        legend.append((f"{sign} {name}", color))
    for x, align, (text, color) in zip((0, 0.5, 1), ("left", "center", "right"), legend, strict=True):
        axes.annotate(
            text, xy=(x, 1), xycoords="axes fraction", xytext=(0, 8), textcoords="offset points", color=color,
            fontweight="bold", ha=align,
        )  # fmt: skip
    axes.set_ylim(shown - 0.4, -0.6)
    every = 1 if shown <= 12 else 4
    axes.set_yticks(rows[::every])
    axes.set_ylabel("channel" if shown == len(first) else f"first {shown} of {len(first)} channels", color=MUTED)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("largest of the weights that write (●) and that read (▲) a channel")
    return figure


def _apart(first: Tensor, second: Tensor, met: Tensor, names: tuple[str, str]) -> str:
    one, two, both = (short(float(reach.max() / reach.min())) for reach in (first, second, met))
    written, read = (printable(name, 18) for name in names)
    return f"Widest channel over narrowest: {one} in {written}, {two} in {read}; equalized, {both} in both"

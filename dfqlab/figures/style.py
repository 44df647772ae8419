"""The one style sheet: colours that stay with their thing, type that reads at half width, and figures as bytes."""

import io
import re
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.layout_engine import PlaceHolderLayoutEngine

DPI = 110
WIDTH = 7.4  # inches: 814 pixels, the column of a report
TITLE_POINTS = 14

INK = "#1d1d1f"
MUTED = "#6a6a70"
RULE = "#dcdce0"

# Apart by at least 10 in CIE Lab for protan, deutan and tritan eyes (Machado et al. 2009) as for others.
COLORS = {
    "zeroq": "#0072b2",
    "mixmix": "#b84300",
    "dsg": "#00573a",
    "deepinversion": "#7b48dc",
    "knowledge_within": "#701a48",
    "gdfq": "#9c8a00",
    "kmdfq": "#cb8243",
    "autorecon": "#00a0c4",
    "filtering": "#a01880",
    "clipped noise": "#5a5a5a",
    "noise": "#8f8f8f",
    "real": "#000000",
}
OTHER = "#8c564b"
ROUNDING, CLIPPING = "#007a87", "#d8435a"  # the two errors of quantization

_FONT = "DejaVu Sans"  # comes with matplotlib, so that a figure looks the same on every system
_RC: dict[Any, Any] = {  # by name: matplotlib's own type of a name is a list of all of them
    "figure.dpi": DPI,
    "savefig.dpi": "figure",
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.titlesize": TITLE_POINTS,
    "figure.titleweight": "bold",
    "font.family": _FONT,
    "font.size": 12.5,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$5"
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 12.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.2,
    "lines.solid_capstyle": "round",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}
_LOCK = threading.RLock()


@contextmanager
def style() -> Iterator[None]:
    """The style sheet over matplotlib's defaults, whatever the user's settings are; they come back afterwards."""
    with _LOCK, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def color_of(source: str) -> str:
    """The colour of a source of images, the same in every figure: noise grey, real data black, a hue for each recipe.

    >>> color_of("zeroq") == color_of("ZeroQ, 128 images"), color_of("real digits")
    (True, '#000000')
    """
    words = " ".join(re.findall(r"\w+", source.casefold()))
    return next((color for name, color in COLORS.items() if f" {name} " in f" {words} "), OTHER)


def white_reads_on(colors: np.ndarray) -> np.ndarray:
    """Whether white words stand out more than those in ink from each of these colours, (..., 3) in 0..1.

    >>> white_reads_on(np.array([[0, 0, 0.5], [1, 1, 0.5]])).tolist()
    [True, False]
    """
    ink, light = _luminance(np.array(to_rgb(INK))) + 0.05, _luminance(colors) + 0.05
    return np.asarray(1.05 / light > light / ink)


def canvas(height: float) -> tuple[Figure, Axes]:
    """A figure as wide as a report's column, `height` inches high, and its axes."""
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.add_subplot()


def sheet(title: str, height: float) -> Figure:
    """A figure with `height` inches under its title and no layout to solve, so that a slider may redraw it at once."""
    lines = title_lines(title)
    total = height + 0.14 + 0.255 * len(lines)
    figure = Figure(figsize=(WIDTH, total))
    figure.set_layout_engine("none")
    figure.suptitle("\n".join(lines), x=0.008, y=1 - 0.1 / total, ha="left", va="top")
    return figure


def place(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes on a sheet, in inches from its lower left corner."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def set_title(figure: Figure, title: str) -> None:
    """Put a sentence over a figure, from its left edge, in as many lines as it takes."""
    figure.suptitle("\n".join(title_lines(title)), x=0.008, horizontalalignment="left")


def settle(figure: Figure) -> None:
    """Find the layout, which takes a few rounds, and keep it: from here on the figure draws the same every time."""
    if isinstance(figure.get_layout_engine(), PlaceHolderLayoutEngine):  # a sheet: nothing to find
        return
    for _ in range(3):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")


def title_lines(title: str, width: float = WIDTH) -> list[str]:
    """A title in as few lines as fit a figure `width` inches wide, none much shorter than the others."""
    title, widest = printable(title), max(12, int(8.3 * width))
    lines = textwrap.wrap(title, widest)
    for narrower in range(widest, max(12, len(title) // max(1, len(lines))) - 1, -1):
        if len(tighter := textwrap.wrap(title, narrower)) > len(lines):
            break
        lines = tighter
    return lines


def printable(text: str, longest: int = 200) -> str:
    """The text on one line, an empty box for each character that the font does not have, an ellipsis past `longest`.

    >>> printable("a cat,\\na 猫")
    'a cat, a ▯'
    """
    text = "".join(c if ord(c) in _known_characters() else "▯" for c in " ".join(text.split()))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _luminance(rgb: np.ndarray) -> np.ndarray:
    """Relative, as WCAG 2 defines it."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ (0.2126, 0.7152, 0.0722))


@cache
def _known_characters() -> frozenset[int]:
    return frozenset(get_font(findfont(_FONT)).get_charmap())


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG of 110 dpi; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True})
    return buffer.getvalue()

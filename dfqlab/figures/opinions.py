"""A mixed image, and how likely networks find each of its two classes beside what its label says (MixMix, Fig. 4)."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.figures.labels import wide
from dfqlab.figures.mixing import box_of, outline
from dfqlab.figures.pictures import to_tiles
from dfqlab.figures.style import COLORS, DPI, INK, MUTED, RULE, WIDTH, place, printable, sheet, style, white_reads_on

_FIRST, _SECOND, _OTHERS = INK, COLORS["mixmix"], RULE
_TILE, _BETWEEN, _HEADS = 152, 36, 24  # pixels: an image at most, between two at least, and over them
_ROW, _BAR = 0.37, 0.74  # inches from a bar to the next, and the bar's share of that
_AXIS, _KEY = 0.58, 0.42  # inches under the bars and over them
_POINTS, _ARROW = 11, 22
_LONGEST_CLASS, _LONGEST_NAME = 12, 22
_LABEL = "the label"


@style()
def mixed_opinions(
    first: Float[Tensor, "c h w"],
    second: Float[Tensor, "c h w"],
    mask: Float[Tensor, "h w"] | Bool[Tensor, "h w"],
    mixed: Float[Tensor, "c h w"],
    labels: tuple[str, str],
    opinions: Mapping[str, tuple[float, float]],
    *,
    title: str | None = None,
) -> Figure:
    """Two images, what became of them between them, and under them a bar for the label and for each network.

    A bar's first class begins at its left end and its second class at its right end, so that either can be compared
    with the label; what a network leaves to all other classes lies between. Places are fixed and nothing is solved, so
    that a slider may redraw it at once.

    Args:
        first, second, mixed: in pixel units, as `image_grid` takes them.
        mask: 1 inside the box, 0 outside (eq. 7); the second class counts as much as it covers (eq. 9).
        labels: what the first and the second image are; if both are the same, the label is that class alone.
        opinions: the probabilities of the first and of the second class by network, from top to bottom; where both are
            one class, its own and 0. At most about six.
        title: a sentence that says what to see; tells what the label and the networks give to the second class if None.

    Raises:
        DataError: images or a mask of different sizes, a mask of anything but one box of ones or nothing, no networks,
            or numbers that cannot be the probabilities of two classes.
    """
    sizes = [tuple(image.shape) for image in (first, second, mixed)]
    if len(sizes[0]) != 3 or len(set(sizes)) > 1 or tuple(mask.shape) != sizes[0][1:]:
        raise DataError(
            f"images {sizes} and a mask {tuple(mask.shape)}: expected (c, h, w) and (h, w), all of one size"
        )
    if not opinions:
        raise DataError("no opinions: expected the probabilities of two classes, from a network or more")
    for name, pair in opinions.items():
        if len(pair) != 2 or not all(isfinite(p) and p >= 0 for p in pair) or sum(pair) > 1 + 1e-4:
            raise DataError(f"{name!r} gives {pair}: expected the probabilities of two classes, together 1 or less")
    box, beta = box_of(mask), float(mask.float().mean())
    names = [printable(label, _LONGEST_CLASS) for label in dict.fromkeys(labels)]
    asked = (1 - beta, beta) if len(names) == 2 else (1.0, 0.0)
    bars = [(_LABEL, asked), *((printable(name, _LONGEST_NAME), pair) for name, pair in opinions.items())]
    left = 0.22 + max(1.05, 1.09 * max(wide(name) for name, _ in bars) / 72)
    across, up = WIDTH - left - 0.22, _ROW * len(bars)
    cell = min(_TILE, (int(across * DPI) - 2 * _BETWEEN) // 3)
    tiles = to_tiles(torch.stack([first, mixed, second]), cell)
    above = (_HEADS + tiles.shape[1]) / DPI
    figure = sheet(title or _sentence(names, asked, opinions), _AXIS + up + _KEY + above)
    _bars(place(figure, left, _AXIS, across, up), bars, across)
    _key(place(figure, left, _AXIS + up, across, _KEY), names)
    axes = place(figure, left, _AXIS + up + _KEY, across, above)
    middle = _images(axes, tiles, round(across * DPI))
    if box is not None:
        axes.add_patch(outline(box, first.shape[1:], tiles.shape[1:3], middle))
    return figure


def _bars(axes: Axes, bars: Sequence[tuple[str, tuple[float, float]]], across: float) -> None:
    axes.set(xlim=(0, 100), ylim=(len(bars) - 0.5, -0.5))
    for at, (_, (one, other)) in enumerate(bars):
        ends = (0.0, one, max(one, 1 - other), 1.0)
        for start, end, color in zip(ends, ends[1:], (_FIRST, _OTHERS, _SECOND), strict=False):
            axes.barh(at, 100 * (end - start), left=100 * start, height=_BAR, color=color)
            percent = _percent(end - start)
            if wide(percent, _POINTS) + 7 <= 72 * across * (end - start):
                ink = "white" if white_reads_on(np.array(to_rgb(color))) else INK
                middle = 50 * (start + end)
                axes.text(middle, at, percent, color=ink, fontsize=_POINTS, ha="center", va="center_baseline")
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], color=INK)
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.set_xticks(range(0, 101, 20))
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("probability (%)")


def _key(axes: Axes, names: Sequence[str]) -> None:
    """Each class over its end of the bars."""
    axes.set_axis_off()
    words = [(0.0, "left", f"■ {names[0]}", _FIRST), (0.5, "center", "any other", MUTED)]
    words += [(1.0, "right", f"{name} ■", _SECOND) for name in names[1:]]
    for x, side, word, color in words:
        weight = "normal" if color == MUTED else "bold"
        axes.text(x, 0.3, word, color=color, fontsize=_POINTS, fontweight=weight, ha=side, va="center_baseline")
    axes.annotate(
        "■", xy=(0.5, 0.3), xytext=(-wide("any other", _POINTS) / 2 - 6, 0), textcoords="offset points",
        color=_OTHERS, fontsize=_POINTS, ha="center", va="center_baseline",
    )  # fmt: skip


def _images(axes: Axes, tiles: UInt8[np.ndarray, "3 height width 3"], across: int) -> tuple[int, int]:
    """The images over the ends of the bars and their middle; returns the upper left corner of the one in the middle."""
    _, height, width, _ = tiles.shape
    axes.set_axis_off()
    places = (0, (across - width) // 2, across - width)
    words: dict[str, Any] = {"color": MUTED, "ha": "center"}
    for tile, x, word in zip(tiles, places, ("first", "mixed", "second"), strict=True):
        axes.imshow(tile, interpolation="nearest", aspect="auto", extent=(x, x + width, _HEADS + height, _HEADS))
        axes.text(x + width / 2, _HEADS - 7, word, fontsize="small", **words)
    for x, arrow in ((places[0] + places[1], "→"), (places[1] + places[2], "←")):
        axes.text((x + width) / 2, _HEADS + height / 2, arrow, fontsize=_ARROW, va="center", **words)
    axes.set(xlim=(0, across), ylim=(_HEADS + height, 0))
    return places[1], _HEADS


def _sentence(names: Sequence[str], asked: tuple[float, float], opinions: Mapping[str, tuple[float, float]]) -> str:
    """How much the label gives to the second class, and the least and the most that networks do: always one line."""
    which = len(names) - 1
    given = sorted(pair[which] for pair in opinions.values())
    least, most = _percent(given[0]), _percent(given[-1])
    span = most if least == most else f"{least.removesuffix(' %')} to {most}"
    who = "networks" if len(given) > 1 else "the network"
    return f"The label gives {_percent(asked[which])} to {names[which]}, {who} {span}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"

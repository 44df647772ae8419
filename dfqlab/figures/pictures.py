"""Images as a teacher sees them: a grid of them, and an inversion as it comes to life."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from dfqlab.errors import DataError
from dfqlab.figures.style import DPI, MUTED, TITLE_POINTS, WIDTH, printable, style, title_lines

GAP = 8
LINE = 19  # a line of captions
_FRAME = 205  # grey level of the hairline around an image
_COLUMNS = 6
_LABELS = 116  # what stands right of a row


@style()
def image_grid(images: Float[Tensor, "n c h w"], captions: Sequence[str], *, title: str) -> Figure:
    """Images in rows of at most six, a caption under each.

    Args:
        images: in pixel units; what lies outside 0..1 is clipped for display. Three channels are shown as RGB, any
            other number as the grey of their mean.
        captions: one for each image.
        title: a sentence that says what to see.

    Raises:
        DataError: no image, or not one caption for each.
    """
    if len(captions) != len(images):
        raise DataError(f"{len(images)} images need as many captions, got {len(captions)}")
    columns = min(_COLUMNS, len(images))
    tiles = to_tiles(images, page_width() // _COLUMNS - GAP)
    _, height, width, _ = tiles.shape
    wrapped = [_wrapped(caption, width + GAP) for caption in captions]
    below = LINE * max(len(lines) for lines in wrapped) + 6
    page = Page(columns, math.ceil(len(tiles) / columns), (height, width), title, below=below)
    for index, (tile, lines) in enumerate(zip(tiles, wrapped, strict=True)):
        page.put(tile, index // columns, index % columns)
        page.write_below("\n".join(lines), index // columns, index % columns)
    return page.figure()


@style()
def coming_to_life(
    snapshots: Sequence[tuple[int, Float[Tensor, "n c h w"]]], captions: Sequence[str] = (), *, title: str | None = None
) -> Figure:
    """How images come out of noise: a row for each image, a column for each step.

    Args:
        snapshots: (step, the same images at that step), as `image_grid` takes them; at most about eight of both.
        captions: what the images are in the end, one for each row; none if empty.
        title: a sentence that says what to see; names the first and the last step if None.

    Raises:
        DataError: no snapshot, snapshots of different shapes, or not one caption for each row.
    """
    shapes = {tuple(images.shape) for _, images in snapshots}
    if len(shapes) != 1:
        raise DataError(f"expected the same images at every step, got {sorted(shapes) if shapes else 'no snapshot'}")
    steps, rows = [step for step, _ in snapshots], len(snapshots[0][1])
    if captions and len(captions) != rows:
        raise DataError(f"{rows} rows need as many captions, got {len(captions)}")
    right = _LABELS if captions else 0
    title = title or f"Images come out of noise: from step {steps[0]:,} to step {steps[-1]:,}"
    cell = (page_width() - right) // max(4, len(steps)) - GAP
    tiles = torch.stack([torch.from_numpy(to_tiles(images, cell)) for _, images in snapshots], dim=1).numpy()
    page = Page(len(steps), rows, tiles.shape[2:4], title, above=LINE + 6, right=right)
    for column, step in enumerate(steps):
        page.write_above(f"step {step:,}" if column == 0 else f"{step:,}", column)
        for row in range(rows):
            page.put(tiles[row, column], row, column)
    for row, caption in enumerate(captions):
        page.write_right("\n".join(_wrapped(caption, right)), row)
    return page.figure()


def page_width() -> int:
    return int(WIDTH * DPI)


def to_tiles(images: Float[Tensor, "n c h w"], cell: int) -> UInt8[np.ndarray, "n height width 3"]:
    """Images as bytes that fill a cell as far as whole pixels do, a hairline around each."""
    if images.numel() == 0:
        raise DataError("no images to show")
    images = images.detach().cpu().float().nan_to_num(0.0).clamp(0, 1)
    if images.shape[1] != 3:
        images = images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    inside = max(1, cell - 2)
    longest = max(images.shape[-2:])
    if longest > inside:
        images = F.avg_pool2d(images, math.ceil(longest / inside), ceil_mode=True)
    else:
        factor = inside // longest
        images = images.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=_FRAME)


def _wrapped(caption: str, width: int) -> list[str]:
    """A caption in at most two lines that fit `width` pixels."""
    return textwrap.wrap(printable(caption), max(4, width // 9), max_lines=2, placeholder="…") or [""]


class Page:
    """A white page, pixel by pixel: a title, and tiles in rows and columns with room for words around them."""

    def __init__(
        self,
        columns: int,
        rows: int,
        tile: tuple[int, ...],
        title: str,
        *,
        above: int = 0,
        below: int = 0,
        right: int = 0,
    ) -> None:
        self.height, self.width = tile
        self.below = below
        tiles_wide = columns * (self.width + GAP) - GAP
        self.total_width = max(tiles_wide + right + 12, page_width() // 2)
        self.title = title_lines(title, self.total_width / DPI)
        self.top = 14 + 26 * len(self.title) + above
        self.total_height = self.top + rows * (self.height + below + GAP)
        self.pixels = np.full((self.total_height, self.total_width, 3), 255, np.uint8)
        self.words: list[tuple[float, float, str, str, str]] = []
        self.left = 6

    def put(self, tile: UInt8[np.ndarray, "height width 3"], row: int, column: int) -> None:
        x, y = self.corner(row, column)
        self.pixels[y : y + self.height, x : x + self.width] = tile

    def write_below(self, text: str, row: int, column: int) -> None:
        x, y = self.corner(row, column)
        self.words.append((x + self.width / 2, y + self.height + 4, text, "center", "top"))

    def write_above(self, text: str, column: int) -> None:
        x, y = self.corner(0, column)
        self.words.append((x + self.width / 2, y - 8, text, "center", "baseline"))

    def write_right(self, text: str, row: int) -> None:
        x = int(np.flatnonzero((self.pixels != 255).any(axis=(0, 2)))[-1])
        self.words.append((x + 10, self.corner(row, 0)[1] + self.height / 2, text, "left", "center"))

    def figure(self) -> Figure:
        """The page at one dot a pixel; it enlarges by whole dots as well."""
        figure = Figure(figsize=(self.total_width / DPI, self.total_height / DPI))
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.imshow(
            self.pixels, interpolation="nearest", aspect="auto", extent=(0, self.total_width, self.total_height, 0)
        )
        axes.text(
            self.left,
            8,
            "\n".join(self.title),
            verticalalignment="top",
            fontsize=TITLE_POINTS,
            fontweight="bold",
            linespacing=1.2,
        )
        for x, y, text, horizontal, vertical in self.words:
            axes.text(x, y, text, color=MUTED, fontsize="small", ha=horizontal, va=vertical, linespacing=1.1)
        return figure

    def corner(self, row: int, column: int) -> tuple[int, int]:
        return self.left + column * (self.width + GAP), self.top + row * (self.height + self.below + GAP)

"""Data mixing: two images, the box, and what comes of them, image and label (MixMix, section 4.2, Fig. 4)."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.figures.pictures import GAP, LINE, Page, page_width, to_tiles
from dfqlab.figures.style import COLORS, printable, style

_LABELS = 196  # pixels, where the labels stand
_COLUMNS = ("one image", "the other", "the box", "mixed")


@style()
def mixing_rows(
    first: Float[Tensor, "n c h w"],
    second: Float[Tensor, "n c h w"],
    mask: Float[Tensor, "n h w"] | Bool[Tensor, "n h w"],
    mixed: Float[Tensor, "n c h w"],
    labels: Sequence[tuple[str, str]],
    *,
    title: str | None = None,
) -> Figure:
    """A row for each pair of images: both, the box that the second is shrunk into, the mixed image, its mixed label.

    The weight of the second label is the box's share of the image (eq. 9).

    Args:
        first, second, mixed: in pixel units, as `image_grid` takes them; at most about five rows.
        mask: 1 inside the box, 0 outside (eq. 7).
        labels: what the first and the second image are, for each row.
        title: a sentence that says what to see; tells the range of the weights if None.

    Raises:
        DataError: no images, not a pair of labels for each, or a mask of anything but one box of ones or nothing.
    """
    if len(labels) != len(first):
        raise DataError(f"{len(first)} rows need as many pairs of labels, got {len(labels)}")
    boxes = [box_of(part) for part in mask]
    betas = mask.float().mean((1, 2)).tolist()
    cell = (page_width() - _LABELS) // len(_COLUMNS) - GAP
    drawn = mask.to(first.dtype)[:, None].expand_as(first)
    tiles = torch.stack([torch.from_numpy(to_tiles(of, cell)) for of in (first, second, drawn, mixed)], dim=1).numpy()
    title = title or _sentence(betas)
    page = Page(len(_COLUMNS), len(first), tiles.shape[2:4], title, above=LINE + 6, right=_LABELS)
    for column, name in enumerate(_COLUMNS):
        page.write_above(name, column)
        for row in range(len(first)):
            page.put(tiles[row, column], row, column)
    for row, (pair, beta) in enumerate(zip(labels, betas, strict=True)):
        one, other = (printable(name, 14) for name in pair)
        page.write_right(f"{1 - beta:.2f} × {one}\n{beta:.2f} × {other}", row)
    figure = page.figure()
    for row, box in enumerate(boxes):
        if box is None:
            continue
        for column in (0, 3):
            corner, tile = page.corner(row, column), (page.height, page.width)
            figure.axes[0].add_patch(outline(box, first.shape[-2:], tile, corner, dashed=column == 0))
    return figure


def box_of(mask: Tensor) -> tuple[int, int, int, int] | None:
    """Left, top, width and height in pixels; nothing where no pixel is inside.

    Raises:
        DataError: ones that fill no box, or anything but ones and zeros.
    """
    inside = mask.detach().cpu() != 0
    if not inside.any():
        return None
    rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    if not (mask.detach().cpu()[top:bottom, left:right] == 1).all():
        raise DataError("a mask is 1 inside one box and 0 outside of it")
    return left, top, right - left, bottom - top


def outline(
    box: tuple[int, int, int, int],
    image: Sequence[int],
    tile: Sequence[int],
    corner: tuple[int, int] = (0, 0),
    *,
    dashed: bool = False,
) -> Rectangle:
    """A box around the second image, to be drawn over a tile.

    Args:
        box: as `box_of` gives it, in pixels of the image.
        image, tile: height and width of the image, and of the tile that `to_tiles` made of it, hairline and all.
        corner: where the tile's upper left corner lies.
        dashed: where the second image is still to come.
    """
    left, top, width, height = box
    down, across = ((drawn - 2) / size for drawn, size in zip(tile, image, strict=True))
    return Rectangle(
        (corner[0] + 1 + left * across, corner[1] + 1 + top * down), width * across, height * down,
        facecolor="none", edgecolor=COLORS["mixmix"], linewidth=2.4, linestyle="--" if dashed else "-",
    )  # fmt: skip


def _sentence(betas: Sequence[float]) -> str:
    low, high = f"{min(betas):.2f}", f"{max(betas):.2f}"
    if low == high:
        return f"The box covers {low} of the image, and the second label counts as much"
    return f"The second label counts as much as its box covers: {low} to {high} of the image"

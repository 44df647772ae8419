"""The box stands where the mask is, and a label counts as much as its image covers."""

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.figures import mixing_rows, to_png

BLUE, YELLOW = (0, 0, 255), (255, 255, 0)


def _plain(color: tuple[int, int, int], count: int = 1, size: int = 8) -> Tensor:
    return (torch.tensor(color) / 255).reshape(1, 3, 1, 1).expand(count, 3, size, size)


def _example(top: int, bottom: int, left: int, right: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mask = torch.zeros(1, 8, 8)
    mask[0, top:bottom, left:right] = 1
    first, second = _plain(BLUE), _plain(YELLOW)
    return first, second, mask, torch.where(mask[:, None] > 0, second, first)


def _pixels(figure: Figure) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(to_png(figure))).convert("RGB"))


def _columns(pixels: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return np.unique(np.nonzero((pixels == color).all(axis=2))[1])


def test_images_stand_in_the_order_in_which_they_come_about() -> None:
    page = np.asarray(mixing_rows(*_example(2, 6, 1, 4), [("3", "8")]).axes[0].images[0].get_array())
    blue, yellow = _columns(page, BLUE), _columns(page, YELLOW)
    side = (yellow.max() - yellow.min()) / 4
    assert blue.min() < yellow.min(), "one image stands before the other"
    assert blue.max() > yellow.max() > blue.min() + 2 * side, "the mixed image stands last and has of both"
    black = _columns(page, (0, 0, 0))
    assert yellow.min() < black.min()
    assert black.max() < blue.max(), "the box stands between the other image and the mixed one"


@pytest.mark.parametrize("box", [(0, 8, 0, 8), (2, 6, 1, 4), (7, 8, 7, 8)])
def test_the_outline_is_drawn_around_the_second_image(box: tuple[int, int, int, int]) -> None:
    figure = mixing_rows(*_example(*box), [("3", "8")])
    page = np.asarray(figure.axes[0].images[0].get_array())
    rows, columns = np.nonzero((page == YELLOW).all(axis=2))
    last = columns > figure.axes[0].patches[1].get_x() - 2  # of the mixed image alone
    outline = figure.axes[0].patches[1]
    assert outline.get_x() == pytest.approx(columns[last].min(), abs=1e-6)
    assert outline.get_x() + outline.get_width() == pytest.approx(columns[last].max() + 1, abs=1e-6)
    assert outline.get_y() == pytest.approx(rows[last].min(), abs=1e-6)
    assert outline.get_y() + outline.get_height() == pytest.approx(rows[last].max() + 1, abs=1e-6)
    first = figure.axes[0].patches[0]
    assert (first.get_y(), first.get_height()) == (outline.get_y(), outline.get_height())
    assert first.get_linestyle() == "--"


def test_a_label_counts_as_much_as_its_image_covers() -> None:
    figure = mixing_rows(*_example(2, 6, 0, 4), [("3", "8")])
    assert "0.75 × 3\n0.25 × 8" in [text.get_text() for text in figure.axes[0].texts]
    title = figure.get_suptitle() or figure.axes[0].texts[0].get_text()
    assert "0.25" in title


def test_a_mask_of_nothing_mixes_nothing() -> None:
    figure = mixing_rows(*_example(3, 3, 3, 3), [("3", "8")])
    assert not figure.axes[0].patches
    assert "1.00 × 3\n0.00 × 8" in [text.get_text() for text in figure.axes[0].texts]


def test_every_row_has_its_own_box_and_a_mask_may_be_boolean() -> None:
    parts = [torch.cat(pair) for pair in zip(_example(0, 4, 0, 8), _example(4, 8, 4, 8), strict=True)]
    first, second, mask, mixed = parts
    figure = mixing_rows(first, second, mask.bool(), mixed, [("a", "b"), ("c", "d")])
    words = [text.get_text() for text in figure.axes[0].texts]
    assert {"0.50 × a\n0.50 × b", "0.75 × c\n0.25 × d"} <= set(words)
    tops = [patch.get_y() for patch in figure.axes[0].patches]
    assert tops[0] == tops[1] < tops[2] == tops[3]
    assert to_png(mixing_rows(first, second, mask, mixed, [("a", "b"), ("c", "d")])) == to_png(figure)


def test_long_labels_stay_inside() -> None:
    figure = mixing_rows(*_example(2, 6, 1, 4), [("African hunting dog, Lycaon pictus", "golden retriever, a dog")])
    figure.draw_without_rendering()
    assert max(text.get_window_extent().x1 for text in figure.axes[0].texts) <= figure.bbox.x1 <= 820


def test_what_is_no_box_is_refused() -> None:
    first, second, mask, mixed = _example(2, 6, 1, 4)
    for broken in (0.5 * mask, mask.index_fill(2, torch.tensor([2]), 0)):
        with pytest.raises(DataError, match="1 inside one box"):
            mixing_rows(first, second, broken, mixed, [("3", "8")])
    with pytest.raises(DataError, match="1 rows need as many pairs of labels, got 0"):
        mixing_rows(first, second, mask, mixed, [])

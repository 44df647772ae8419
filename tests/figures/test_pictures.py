"""Images are shown pixel by pixel, in the valid range, where they belong."""

import io
import itertools

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.figures import coming_to_life, image_grid, to_png

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
YELLOW, CYAN, MAGENTA = (255, 255, 0), (0, 255, 255), (255, 0, 255)


def _pixels(figure: Figure) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(to_png(figure))).convert("RGB"))


def _where(pixels: np.ndarray, color: tuple[int, int, int]) -> tuple[int, int, int, int, int]:
    """Top, bottom, left, right and number of the pixels of one colour."""
    rows, columns = np.nonzero((pixels == color).all(axis=2))
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1, len(rows)


def _plain(color: tuple[int, int, int], size: int = 4) -> Tensor:
    return (torch.tensor(color) / 255).reshape(3, 1, 1).expand(3, size, size)


@pytest.mark.parametrize("size", [4, 7, 16, 28, 32, 100])
def test_one_pixel_becomes_one_square(size: int) -> None:
    image = torch.zeros(6, 3, size, size)
    image[1, :, size // 2, size - 1] = torch.tensor(RED) / 255
    top, bottom, left, right, count = _where(_pixels(image_grid(image, [""] * 6, title="one pixel")), RED)
    assert bottom - top == right - left
    assert count == (bottom - top) ** 2


def test_a_square_stays_one_at_twice_the_resolution() -> None:
    image = torch.zeros(1, 3, 4, 4)
    image[0, :, 1, 2] = torch.tensor(RED) / 255
    figure, larger = image_grid(image, [""], title="one pixel"), io.BytesIO()
    count = _where(_pixels(figure), RED)[4]
    figure.savefig(larger, dpi=2 * figure.dpi)
    assert _where(np.array(Image.open(larger).convert("RGB")), RED)[4] == 4 * count


def test_the_longer_side_decides_and_the_page_keeps_its_width() -> None:
    for height, width in ((4, 20), (20, 4), (300, 200), (1, 1)):
        pixels = _pixels(image_grid(torch.rand(7, 3, height, width), ["a"] * 7, title="sizes"))
        assert pixels.shape[1] <= 820


def test_what_lies_outside_the_valid_range_is_clipped() -> None:
    images = torch.linspace(-3, 4, 64).reshape(1, 1, 8, 8)
    clipped = image_grid(images.clamp(0, 1), ["x"], title="range")
    assert to_png(image_grid(images, ["x"], title="range")) == to_png(clipped)
    assert to_png(image_grid(images - 0.2, ["x"], title="range")) != to_png(clipped)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_than_three_channels_are_shown_grey(channels: int) -> None:
    pixels = _pixels(image_grid(torch.full((1, channels, 4, 4), 0.2), ["x"], title="grey"))
    assert _where(pixels, (51, 51, 51))[4] > 1000


def test_the_grid_goes_row_by_row() -> None:
    images = torch.stack([*[torch.zeros(3, 4, 4)] * 5, _plain(RED), _plain(GREEN), _plain(BLUE)])
    figure = image_grid(images, [f"teacher: {i}" for i in range(8)], title="grid")
    red, green, blue = (_where(_pixels(figure), color) for color in (RED, GREEN, BLUE))
    assert green[0] == blue[0] > red[1]  # the seventh begins the second row
    assert green[3] < blue[2] < red[2]
    captions = [text.get_text() for text in figure.axes[0].texts]
    assert captions[1:] == [f"teacher: {i}" for i in range(8)]


def test_a_long_caption_takes_two_lines() -> None:
    figure = image_grid(torch.zeros(6, 1, 4, 4), ["African hunting dog, Lycaon pictus"] * 6, title="dogs")
    assert figure.axes[0].texts[1].get_text() == "African\nhunting dog,…"
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts[1:]]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert min(box.y0 for box in boxes) > 0


def test_steps_go_right_and_images_go_down() -> None:
    colors = [[RED, GREEN, BLUE], [YELLOW, CYAN, MAGENTA]]
    snapshots = [(step, torch.stack([_plain(row[i]) for row in colors])) for i, step in enumerate((0, 10, 500))]
    figure = coming_to_life(snapshots, ["teacher: 3", "teacher: 8"])
    pixels = _pixels(figure)
    places = [[_where(pixels, color) for color in row] for row in colors]
    for row in places:
        assert row[0][3] < row[1][2] < row[1][3] < row[2][2]
        assert len({place[:2] for place in row}) == 1
    assert places[0][0][1] < places[1][0][0]
    words = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert words["step 0"][0] < words["10"][0] < words["500"][0]
    assert words["teacher: 3"][1] < words["teacher: 8"][1]


def test_what_cannot_be_shown_is_refused() -> None:
    image = torch.zeros(2, 1, 4, 4)
    with pytest.raises(DataError, match="2 images need as many captions, got 1"):
        image_grid(image, ["one"], title="captions")
    with pytest.raises(DataError, match="no images"):
        image_grid(image[:0], [], title="nothing")
    with pytest.raises(DataError, match="no snapshot"):
        coming_to_life([])
    with pytest.raises(DataError, match="2 rows need as many captions, got 1"):
        coming_to_life([(0, image)], ["one"])
    with pytest.raises(DataError, match="the same images at every step"):
        coming_to_life([(0, image), (1, image[:1])])

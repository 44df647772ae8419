"""Inversions in rows, and one on its way: every image in its place, and places that do not move."""

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.figures import image_rows, inversion_progress, to_png

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
YELLOW = (255, 255, 0)


def plain(*colors: tuple[int, int, int], size: int = 4) -> Tensor:
    return (torch.tensor(colors) / 255).reshape(-1, 3, 1, 1).expand(-1, 3, size, size)


def pixels(figure: Figure) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(to_png(figure))).convert("RGB"))


def middle(page: np.ndarray, color: tuple[int, int, int]) -> tuple[float, float]:
    """Row and column around which the pixels of a colour lie."""
    rows, columns = np.nonzero((page == color).all(axis=2))
    assert len(rows) > 100, color
    return float(rows.mean()), float(columns.mean())


def words(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def progress(done: int, title: str = "how far") -> Figure:
    snapshots = [(step, plain(RED, GREEN)) for step in range(1, done + 1)][:4]
    steps = list(range(1, done + 1))
    return inversion_progress(
        snapshots, steps, {"loss": [10.0 / step for step in steps]}, total=9, rows=2, columns=4, title=title
    )


def test_a_source_has_a_row_and_an_image_its_column() -> None:
    figure = image_rows({"first": plain(RED, GREEN), "second": plain(BLUE, YELLOW)}, "ab", title="which is where")
    page = pixels(figure)
    red, green, blue, yellow = (middle(page, color) for color in (RED, GREEN, BLUE, YELLOW))
    assert red[0] == green[0] < blue[0] == yellow[0]
    assert red[1] == blue[1] < green[1] == yellow[1]
    assert {"a", "b", "first", "second"} <= set(words(figure))


def test_the_name_of_a_row_stands_in_two_lines_where_it_is_long() -> None:
    figure = image_rows({"The Knowledge Within": plain(RED), "x" * 60: plain(RED)}, title="long names")
    names = [word for word in words(figure) if "\n" in word or "x" in word]
    assert names[0] == "The Knowledge\nWithin"
    assert all(len(line) <= 19 for name in names for line in name.split("\n"))


@pytest.mark.parametrize(
    ("rows", "heads"),
    [({}, ""), ({"a": plain(RED), "b": plain(RED, RED)}, ""), ({"a": plain(RED, RED)}, "xyz")],
)
def test_rows_that_do_not_go_together_are_refused(rows: dict[str, Tensor], heads: str) -> None:
    with pytest.raises(DataError):
        image_rows(rows, heads, title="cannot be")


def test_its_places_do_not_move_while_it_runs() -> None:
    figures = [progress(done) for done in (0, 1, 3, 9)]
    assert len({tuple(figure.get_size_inches()) for figure in figures}) == 1
    places = [[tuple(axes.get_position().bounds) for axes in figure.axes] for figure in figures]
    assert all(place == places[0] for place in places)
    assert len({tuple(figure.axes[1].get_xlim()) for figure in figures}) == 1
    before, after = (middle(pixels(figures[index]), GREEN) for index in (1, 3))
    assert before[0] == after[0]


def test_a_snapshot_stands_in_its_column_and_what_is_to_come_is_empty() -> None:
    first, second = plain(RED, RED), plain(BLUE, BLUE)
    strip = inversion_progress(
        [(1, first), (5, second)], [1, 5], {"loss": [3.0, 1.0]}, total=9, rows=2, columns=4, title="two of four"
    )
    page = np.asarray(strip.axes[0].images[0].get_array())
    width = page.shape[1]
    assert middle(page, RED)[1] < width / 4 < middle(page, BLUE)[1] < width / 2
    assert (page[:, width // 2 + 8 :] >= 244).all(), "empty places are pale"
    assert {"step 1", "5"} <= set(words(strip))


def test_every_term_is_a_line_with_its_name() -> None:
    steps, values = [1, 2, 3], {"loss": [5.0, 3.0, 2.0], "label": [4.0, 2.0, float("nan")]}
    figure = inversion_progress([], steps, values, total=3, rows=1, columns=4, title="two terms")
    axes = figure.axes[1]
    assert {"loss", "label"} <= set(words(figure))
    assert [line.get_ydata().tolist()[:2] for line in axes.lines] == [[5.0, 3.0], [4.0, 2.0]]
    assert len({str(line.get_linestyle()) + str(line._dash_pattern) for line in axes.lines}) == 2  # type: ignore[attr-defined]


def test_what_is_below_a_thousandth_of_the_loss_does_not_stretch_the_axis() -> None:
    figure = inversion_progress(
        [], [1, 2], {"loss": [10.0, 9.0], "label": [1.0, 1e-9]}, total=2, rows=1, columns=4, title="tiny"
    )
    low, high = figure.axes[1].get_ylim()
    assert high / low == pytest.approx(1000)


def test_captions_stand_beside_their_rows() -> None:
    figure = inversion_progress(
        [(1, plain(RED, GREEN))],
        [1],
        {"loss": [1.0]},
        total=2,
        rows=2,
        columns=4,
        captions=("one", "two"),
        title="both",
    )
    heights = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts}
    assert heights["one"] < heights["two"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"snapshots": [(step, plain(RED, RED)) for step in range(5)]},
        {"snapshots": [(1, plain(RED))]},
        {"captions": ["one"]},
        {"values": {"loss": [1.0]}},
    ],
)
def test_what_does_not_fit_is_refused(wrong: dict[str, object]) -> None:
    given: dict[str, object] = {"snapshots": [(1, plain(RED, RED))], "steps": [1, 2], "values": {"loss": [1.0, 2.0]}}
    with pytest.raises(DataError):
        inversion_progress(**{**given, **wrong}, total=2, rows=2, columns=4, title="no")  # type: ignore[arg-type]

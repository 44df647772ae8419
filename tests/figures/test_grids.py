"""A number lands where the op puts it, codes stand over each other, and every number of a matrix can be read."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from dfqlab.errors import DataError
from dfqlab.figures import matrix_view, number_line, to_png
from dfqlab_kernels import fake_quantize


def _number(text: str) -> float:
    return float(text.replace("−", "-"))


def _landing(figure: Figure) -> tuple[float, float]:
    """The code and the real in bold, lower first."""
    bold = [text for text in figure.axes[0].texts if text.get_fontweight() == "bold" and "=" not in text.get_text()]
    code, real = sorted(bold, key=lambda text: text.get_position()[1])
    return _number(code.get_text()), _number(real.get_text())


@pytest.mark.parametrize("x", [0.26, -0.31, 0.25, 0.15, -0.05, 0.35, 0.75, 3.0, -9.0, 0.0])
def test_a_number_lands_where_the_op_puts_it(x: float) -> None:
    for zero_point, low, high in ((0, -8, 7), (3, 0, 15)):
        expected = fake_quantize(
            torch.tensor([x]), torch.tensor([0.1]), torch.tensor([zero_point]), quant_min=low, quant_max=high
        )
        code, real = _landing(number_line(x, 0.1, zero_point, low, high))
        assert real == pytest.approx(expected.item(), abs=1e-6)
        assert (code - zero_point) * 0.1 == pytest.approx(real)


def test_every_code_has_a_tick_and_names_stand_over_their_code() -> None:
    axes = number_line(0.26, 0.1, 3, 0, 255).axes[0]
    ticks = {segment[0][0] for lines in axes.collections for segment in getattr(lines, "get_segments", list)()}
    assert set(range(256)) <= ticks
    named = {}
    for text in axes.texts:
        if text.get_text().replace("−", "").replace(".", "").isdigit():
            named.setdefault(text.get_position()[0], []).append(_number(text.get_text()))
    assert {6, 255} <= set(named)  # where it lands, and an end; the other end is too near
    for code, (real, written) in named.items():
        assert written == code
        assert real == pytest.approx((code - 3) * 0.1)


@pytest.mark.parametrize(
    ("x", "scale", "grid"),
    [(0.26, 0.1, (0, -8, 7)), (1.2, 0.0186, (117, 0, 255)), (-50.0, 0.0186, (117, 0, 255)), (0.1, 0.5, (0, -2, 1))],
)
def test_few_names_none_on_another_and_all_inside(x: float, scale: float, grid: tuple[int, int, int]) -> None:
    figure = number_line(x, scale, *grid)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    assert len(boxes) < 24
    assert all(not one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)


def test_the_title_tells_the_code_and_what_it_stands_for() -> None:
    assert number_line(0.26, 0.1, 0, -8, 7).get_suptitle() == "0.26 becomes code 3, which stands for 0.30"
    assert number_line(-9.0, 0.1, 0, -8, 7).get_suptitle() == "−9 is clipped to code −8, which stands for −0.80"
    assert number_line(0.74, 0.1, 0, -8, 7).get_suptitle() == "0.74 becomes code 7, which stands for 0.70"


def test_both_ends_are_shaded_and_named_clipped() -> None:
    for grid in ((-8, 7), (-2, 1), (0, 255)):
        axes = number_line(0.1, 0.1, 0, *grid).axes[0]
        assert [text.get_text() for text in axes.texts].count("clipped") == 2
        spans = [patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches[:2]]
        assert spans[0].x1 == pytest.approx(grid[0] - 0.5)
        assert spans[1].x0 == pytest.approx(grid[1] + 0.5)
        assert all(span.width > 0 for span in spans)


def test_a_number_far_away_leaves_the_grid_readable() -> None:
    low, high = number_line(1e9, 0.1, 0, -8, 7).axes[0].get_xlim()
    assert high - low < 2 * 15


def test_no_grid_and_no_number_are_refused() -> None:
    with pytest.raises(DataError, match="finite number"):
        number_line(float("nan"), 0.1, 0, -8, 7)
    with pytest.raises(DataError, match=r"scale=0\.0: expected a positive number, try"):
        number_line(0.1, 0.0, 0, -8, 7)
    with pytest.raises(DataError, match=r"codes 7\.\.-8: expected two or more"):
        number_line(0.1, 0.1, 0, 7, -8)


WEIGHTS = torch.tensor([[0.5, -0.25], [0.0, -0.001]])


def _shade(figure: Figure, index: int = 0) -> np.ndarray:
    return np.asarray(figure.axes[index].images[0].get_array())


def test_every_cell_holds_its_number() -> None:
    figure = matrix_view({"weights": WEIGHTS, "codes": torch.tensor([[4, -2], [0, 7]])}, title="numbers")
    written = [{text.get_position(): text.get_text() for text in axes.texts} for axes in figure.axes]
    assert written[0] == {(0, 0): "0.50", (1, 0): "−0.25", (0, 1): "0.00", (1, 1): "0.00"}
    assert written[1] == {(0, 0): "4", (1, 0): "−2", (0, 1): "0", (1, 1): "7"}
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["weights", "codes"]


def test_zero_is_white_and_signs_differ() -> None:
    shade = _shade(matrix_view({"weights": torch.tensor([[0.5, -0.5, 0.0]])}, title="signs"))[0]
    assert min(shade[2][:3]) > 0.95
    assert shade[0][0] > shade[0][2]
    assert shade[1][2] > shade[1][0]


def test_reals_share_one_scale_of_colour_and_integers_another() -> None:
    big, small, codes = torch.tensor([[1.0]]), torch.tensor([[0.01]]), torch.tensor([[7]])
    figure = matrix_view({"big": big, "small": small, "codes": codes}, title="scale")
    assert np.allclose(_shade(figure, 0), _shade(figure, 2))
    assert _shade(figure, 1).min() > 0.9
    alone = matrix_view({"small": small}, title="scale")
    assert np.allclose(_shade(alone), _shade(figure, 0))


def test_numbers_stand_out_from_every_cell() -> None:
    figure = matrix_view({"weights": torch.linspace(-1, 1, 48).reshape(6, 8)}, title="contrast")
    for text in figure.axes[0].texts:
        column, row = text.get_position()
        light = float(np.dot(_linear(_shade(figure)[row, column]), (0.2126, 0.7152, 0.0722)))
        own = float(np.dot(_linear(to_rgb(text.get_color())), (0.2126, 0.7152, 0.0722)))
        assert (max(light, own) + 0.05) / (min(light, own) + 0.05) >= 4.0, text


def _linear(color: np.ndarray) -> np.ndarray:
    rgb = np.asarray(color[:3])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 4), (6, 8), (6, 3)])
def test_numbers_fit_their_cells_and_matrices_the_page(rows: int, columns: int) -> None:
    matrix = -torch.ones(rows, columns) * 1.25
    figure = matrix_view({"weights": matrix, "after 4 bits": matrix, "error": matrix}, title="fit")
    figure.draw_without_rendering()
    for axes in figure.axes:
        cell = axes.bbox.width / columns
        assert all(text.get_window_extent().width < cell for text in axes.texts)
        assert all(text.get_fontsize() > 10 for text in axes.texts)
        assert axes.bbox.x0 >= 0
        assert axes.bbox.x1 <= figure.bbox.x1
        assert axes.bbox.y0 >= 0
    boxes = [axes.bbox for axes in figure.axes]
    assert all(not one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_three_small_matrices_stand_side_by_side() -> None:
    matrix = -torch.ones(4, 4)
    figure = matrix_view({"weights": matrix, "after 4 bits": matrix, "error": matrix}, title="a row")
    assert len({axes.get_position().y0 for axes in figure.axes}) == 1


def test_cells_that_are_not_finite_and_matrices_of_zeros_are_drawn() -> None:
    to_png(matrix_view({"odd": torch.tensor([[float("nan"), float("inf"), 1.0]])}, title="odd"))
    to_png(matrix_view({"zeros": torch.zeros(2, 2), "codes": torch.zeros(2, 2, dtype=torch.int8)}, title="zeros"))


def test_matrices_too_large_to_read_are_refused() -> None:
    with pytest.raises(DataError, match=r"'weights' is 9 x 2: expected .* at most 6 x 8, try matrix"):
        matrix_view({"weights": torch.zeros(9, 2)}, title="too large")
    with pytest.raises(DataError, match="no matrices"):
        matrix_view({}, title="none")

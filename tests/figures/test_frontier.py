"""The frontier and the points beside it stand where their numbers say; a table shows each layer's bits."""

import pytest

from dfqlab.compression.allocation import Allocation, frontier, one_width
from dfqlab.errors import DataError
from dfqlab.figures import bits_along_frontier, loss_frontier, to_png

LOSSES = {
    "stem": {2: 4.0, 4: 0.5, 8: 0.001}, "block.conv": {2: 0.3, 4: 0.02, 8: 0.0001}, "head": {2: 1.0, 4: 0.1, 8: 0.01},
}  # fmt: skip
SIZES = {"stem": 100, "block.conv": 800, "head": 300}
BUDGETS = [8, 2, 2.5, 4]


@pytest.fixture(scope="module")
def points() -> tuple[Allocation, ...]:
    return frontier(LOSSES, SIZES, BUDGETS)


def test_points_stand_at_their_size_and_loss(points: tuple[Allocation, ...]) -> None:
    alike = one_width(LOSSES, SIZES)
    axes = loss_frontier(points, alike).axes[0]
    line, marks = axes.lines
    order = sorted(points, key=lambda point: point.mean_bits)
    assert list(line.get_xdata()) == [point.mean_bits for point in order]
    assert list(line.get_ydata()) == [point.loss for point in order]
    assert list(zip(marks.get_xdata(), marks.get_ydata(), strict=True)) == [(p.mean_bits, p.loss) for p in alike]
    assert axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    assert low < min(p.loss for p in points)
    assert high > max(p.loss for p in points)


def test_the_title_tells_where_a_width_for_each_gains_most() -> None:
    points = [Allocation({"a": 2}, 2.0, 8.0), Allocation({"a": 3}, 3.5, 0.5), Allocation({"a": 8}, 8.0, 0.1)]
    alike = [Allocation({"a": 2}, 2.0, 8.0), Allocation({"a": 4}, 4.0, 2.0), Allocation({"a": 8}, 8.0, 0.1)]
    title = loss_frontier(points, alike).get_suptitle().replace("\n", " ")
    assert title == "At 4 bits a weight, one width for all loses 4 times what a width for each layer does"
    assert "as much as" in loss_frontier(points[::2], alike[::2]).get_suptitle()
    assert loss_frontier(points).get_suptitle().replace("\n", " ") == "Layers lose 8 at 2 bits, 0.1 at 8"


def test_every_layer_has_its_bits_in_the_column_of_its_size(points: tuple[Allocation, ...]) -> None:
    figure = bits_along_frontier(points)
    axes = figure.axes[0]
    shown = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}
    order = sorted(points, key=lambda point: point.mean_bits)
    for column, point in enumerate(order):
        assert [shown[row, column] for row in range(3)] == [str(bits) for bits in point.widths.values()]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(SIZES)
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"{p.mean_bits:.3g}" for p in order]
    assert to_png(figure) == to_png(bits_along_frontier(points[::-1]))


def test_the_tables_title_names_whose_bits_are_most_where_layers_first_differ() -> None:
    few = Allocation({"a": 2, "b": 4}, 3.0, 1.0)
    fewest = Allocation({"a": 2, "b": 2}, 2.0, 2.0)
    assert bits_along_frontier([few, fewest]).get_suptitle() == "At 3 bits on average, b has 4"
    assert "every layer has 2" in bits_along_frontier([Allocation({"a": 2, "b": 2}, 2.0, 1.0)]).get_suptitle()


def test_nothing_and_what_cannot_be_read_is_refused(points: tuple[Allocation, ...]) -> None:
    with pytest.raises(DataError, match="expected a frontier"):
        loss_frontier([])
    with pytest.raises(DataError, match="0 layers at 0 sizes"):
        bits_along_frontier([])
    with pytest.raises(DataError, match="13 sizes"):
        bits_along_frontier([points[0]] * 13)
    with pytest.raises(DataError, match="the same layers"):
        bits_along_frontier([points[0], Allocation({"other": 2}, 2.0, 1.0)])

"""Bars of bytes: as long as the numbers, read and written apart, and the floor where it is."""

import itertools

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from dfqlab.errors import DataError
from dfqlab.figures import to_png, traffic_bars
from dfqlab.figures.style import ROUNDING

ROWS = {"formula, op by op": (6.0, 6.0), "torch's own op": (1.0, 1.25), "one kernel": (1.0, 1.03)}


def drawn() -> Figure:
    return traffic_bars(ROWS, floor=2)


def test_a_bar_is_as_long_as_what_is_read_and_then_written() -> None:
    axes = drawn().axes[0]
    bars = [(bar.get_x(), bar.get_width(), bar.get_hatch()) for bar in axes.patches]
    expected = [part for read, written in ROWS.values() for part in ((0, read, None), (read, written, "////"))]
    assert bars == [
        pytest.approx(part) if part[2] is None else (part[0], pytest.approx(part[1]), "////") for part in expected
    ]
    assert to_hex(axes.patches[0].get_facecolor()) == ROUNDING


def test_each_bar_is_told_with_its_number_and_name() -> None:
    axes = drawn().axes[0]
    assert [text.get_text() for text in axes.texts] == ["12 B", "2.25 B", "2.03 B"]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(ROWS)


def test_the_floor_is_a_dashed_line_and_told() -> None:
    figure = drawn()
    (line,) = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert set(line.get_xdata()) == {2}
    assert "the floor, 2 B" in [text.get_text() for text in figure.axes[1].texts]
    assert not traffic_bars(ROWS).axes[0].lines


def test_the_title_tells_the_most_over_the_least() -> None:
    assert drawn().get_suptitle() == "Formula, op by op: 5.9 times the bytes of one kernel"
    assert traffic_bars({"alone": (1, 1)}).get_suptitle() == "What alone moves"
    assert traffic_bars({"some": (1, 1), "nothing": (0, 0)}).get_suptitle() == "What some moves"
    assert traffic_bars(ROWS, title="A sentence").get_suptitle() == "A sentence"


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_nothing_overlaps_or_leaves_the_picture(rows: int) -> None:
    figure = traffic_bars({f"a way with quite a long name {n}": (1.0 + n, 2.0) for n in range(rows)}, floor=3)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for axes in figure.axes for text in axes.texts]
    boxes += [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(not one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)
    to_png(figure)


def test_traffic_that_cannot_be_drawn_is_refused() -> None:
    for rows in ({}, {"a": (-1.0, 0.0)}, {"a": (float("nan"), 0.0)}):
        with pytest.raises(DataError, match="expected one or more rows"):
            traffic_bars(rows)

"""The roofline: a slope, a ceiling, and every point where its numbers put it."""

import itertools

import numpy as np
import pytest

from dfqlab.errors import DataError
from dfqlab.figures import RooflinePoint, roofline, to_png

POINTS = [
    RooflinePoint("convolution", 140),
    RooflinePoint("fake quantize, formula", 0.125),
    RooflinePoint("fake quantize, one pass", 0.75),
    RooflinePoint("BN statistics, one pass", 1.0),
]
MACHINE = {"bandwidth": 4e12, "peak": 60e12}


def markers(figure):
    lines = [line for line in figure.axes[0].lines if line.get_marker() in ("o", "D")]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0]), line) for line in lines]


def test_a_computed_point_stands_hollow_on_the_roof() -> None:
    points = markers(roofline(POINTS, **MACHINE))
    assert [(x, y) for x, y, _ in points] == [
        pytest.approx(pair) for pair in ((0.125, 0.5e12), (0.75, 3e12), (1.0, 4e12), (140, 60e12))
    ]
    assert all(line.get_markerfacecolor() == "white" for _, _, line in points)


def test_a_measured_point_stands_filled_where_it_was_measured() -> None:
    figure = roofline([RooflinePoint("measured", 0.75, achieved=2.1e12)], **MACHINE)
    ((x, y, line),) = markers(figure)
    assert (x, y) == (0.75, 2.1e12)
    assert line.get_markerfacecolor() == line.get_color() != "white"


def test_what_arithmetic_limits_has_another_marker_and_colour() -> None:
    points = markers(roofline(POINTS, **MACHINE))
    assert [line.get_marker() for *_, line in points] == ["o", "o", "o", "D"]
    assert points[-1][2].get_color() != points[0][2].get_color()


def test_the_roof_is_the_bandwidth_up_to_the_ridge_and_the_peak_from_there() -> None:
    slope, ceiling, ridge = [
        line for line in roofline(POINTS, **MACHINE).axes[0].lines if line.get_marker() not in "oD"
    ]
    x, y = map(np.asarray, slope.get_data())
    assert np.allclose(y, 4e12 * x)
    assert set(ceiling.get_ydata()) == {60e12}
    assert x[-1] == ceiling.get_xdata()[0] == ridge.get_xdata()[0] == 15


def test_without_a_peak_there_is_the_slope_alone_and_memory_limits_all() -> None:
    figure = roofline(POINTS, bandwidth=1e9, peak=None)
    assert len([line for line in figure.axes[0].lines if line.get_marker() not in ("o", "D")]) == 1
    assert figure.get_suptitle() == "Memory limits 4 of 4 computations"


def test_the_title_tells_how_many_memory_holds_back() -> None:
    assert roofline(POINTS, **MACHINE).get_suptitle() == "Memory limits 3 of 4 computations, arithmetic the rest"
    assert roofline(POINTS[:1], **MACHINE).get_suptitle() == "Memory limits none of 1 computation"


def test_the_machine_and_its_numbers_are_told() -> None:
    words = [text.get_text() for text in roofline(POINTS, **MACHINE, machine="an imaginary machine").axes[0].texts]
    assert "memory of an imaginary machine:\n4 TB a second" in words
    assert "arithmetic: 60 TFLOP a second" in words
    assert "fake quantize, one pass: 0.75" in words


@pytest.mark.parametrize("close", [1.0, 1.02, 1.3, 8.0])
def test_names_do_not_stand_on_one_another_nor_outside(close: float) -> None:
    points = [RooflinePoint(f"a computation, number {n}", 0.2 * close**n, achieved=None) for n in range(5)]
    figure = roofline(points, **MACHINE)
    figure.draw_without_rendering()
    named = [text for text in figure.axes[0].texts if "number" in text.get_text()]
    boxes = [text.get_bbox_patch().get_window_extent() for text in named]
    assert len(boxes) == 5
    assert all(not one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)
    to_png(figure)


def test_the_same_points_give_the_same_picture() -> None:
    assert to_png(roofline(POINTS, **MACHINE)) == to_png(roofline(POINTS[::-1], **MACHINE))


def test_numbers_that_are_no_roofline_are_refused() -> None:
    for points, machine in (
        ([], MACHINE),
        ([RooflinePoint("a", 0.0)], MACHINE),
        ([RooflinePoint("a", 1.0, achieved=float("inf"))], MACHINE),
        (POINTS, {"bandwidth": 0.0, "peak": 1.0}),
        (POINTS, {"bandwidth": 1.0, "peak": -1.0}),
        (POINTS, {"bandwidth": 1.0, "peak": 0.0}),
    ):
        with pytest.raises(DataError, match="positive and finite"):
            roofline(points, **machine)

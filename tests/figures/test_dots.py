"""Shares are drawn where they are, with their intervals, beside the teacher."""

import pytest

from dfqlab.errors import DataError
from dfqlab.figures import accuracy_by_source
from dfqlab.measures import Interval

ROWS = {"clipped noise": Interval(0.871, 0.841, 0.895), "zeroq": Interval(0.968, 0.951, 0.979)}
TEACHER = Interval(0.987, 0.974, 0.993)


def test_dots_and_intervals_stand_where_the_shares_are() -> None:
    axes = accuracy_by_source(ROWS).axes[0]
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    for height, share in enumerate(ROWS.values()):
        assert (pytest.approx([100 * share.low, 100 * share.high]), [height, height]) in drawn
        assert (pytest.approx([100 * share.value]), [height]) in drawn
    assert [text.get_text() for text in axes.texts] == ["87.1 [84.1, 89.5]", "96.8 [95.1, 97.9]"]


def test_the_first_row_is_the_topmost() -> None:
    bottom, top = accuracy_by_source(ROWS).axes[0].get_ylim()
    assert top < 0 < bottom


def test_the_teacher_is_a_dashed_line_with_its_interval() -> None:
    axes = accuracy_by_source(ROWS, TEACHER).axes[0]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [list(line.get_xdata()) for line in dashed] == [pytest.approx([98.7, 98.7])]
    span = axes.patches[0].get_window_extent().transformed(axes.transData.inverted())
    assert (span.x0, span.x1) == pytest.approx((97.4, 99.3))
    assert "teacher 98.7" in [text.get_text() for text in axes.texts]


def test_without_a_teacher_there_is_no_dashed_line() -> None:
    axes = accuracy_by_source(ROWS, measure="agreement with the teacher").axes[0]
    assert "--" not in [line.get_linestyle() for line in axes.lines]
    assert axes.get_xlabel().startswith("agreement with the teacher (%)")


def test_what_is_measured_fits_under_the_axis() -> None:
    rows = {"a source with a rather long name": Interval(0.9, 0.8, 1.0)}
    figure = accuracy_by_source(rows, measure="agreement with the teacher on 10,000 synthetic images of mixmix")
    label = figure.axes[0].xaxis.label.get_window_extent()
    assert label.x0 > 0
    assert label.x1 < figure.bbox.x1
    assert label.y0 > 0


def test_everything_is_inside_the_axis_even_where_all_shares_are_one() -> None:
    for rows, teacher in ((ROWS, TEACHER), ({"zeroq": Interval(1.0, 1.0, 1.0)}, Interval(1.0, 1.0, 1.0))):
        low, high = accuracy_by_source(rows, teacher).axes[0].get_xlim()
        assert all(low < 100 * end < high for share in (*rows.values(), teacher) for end in (share.low, share.high))


def test_the_title_tells_the_best_and_the_worst() -> None:
    title = accuracy_by_source(ROWS, measure="accuracy on 599 digits").get_suptitle().replace("\n", " ")
    assert title == "Calibrated on zeroq: accuracy 96.8 %; on clipped noise: 87.1 %"


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        accuracy_by_source({})

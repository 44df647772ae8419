"""Points arrive in a frame that keeps its place, many bits to the left."""

import itertools

import numpy as np
import pytest

from dfqlab.errors import DataError
from dfqlab.figures import accuracy_by_bits, color_of, to_png
from dfqlab.measures import Interval

BITS = [8, 4, 2]
TEACHER = Interval(0.987, 0.974, 0.993)
FALL = [Interval(0.98, 0.97, 0.99), Interval(0.95, 0.93, 0.96), Interval(0.31, 0.28, 0.34)]


def test_shares_and_intervals_stand_at_their_bits() -> None:
    axes = accuracy_by_bits(BITS, {"zeroq": FALL}).axes[0]
    line = next(line for line in axes.lines if line.get_marker() != "None")
    assert line.get_color() == color_of("zeroq")
    assert list(line.get_xdata()) == BITS
    assert list(line.get_ydata()) == pytest.approx([98, 95, 31])
    bars = [(list(bar.get_xdata()), list(bar.get_ydata())) for bar in axes.lines if bar is not line]
    expected = [([b, b], pytest.approx([100 * s.low, 100 * s.high])) for b, s in zip(BITS, FALL, strict=True)]
    assert bars == expected


def test_few_bits_are_right_whatever_the_order() -> None:
    for bits, row in ((BITS, FALL), (BITS[::-1], FALL[::-1])):
        axes = accuracy_by_bits(bits, {"zeroq": row}).axes[0]
        left, right = axes.get_xlim()
        assert left > 8 > 2 > right
        assert sorted(axes.get_xticks()) == [2, 4, 8]
        assert list(axes.lines[-1].get_ydata()) == pytest.approx([98, 95, 31])


def test_what_is_not_measured_is_a_gap() -> None:
    axes = accuracy_by_bits(BITS, {"zeroq": [FALL[0], None, FALL[2]]}).axes[0]
    line = next(line for line in axes.lines if line.get_marker() != "None")
    assert np.isnan(line.get_ydata()).tolist() == [False, True, False]
    assert "nothing measured yet" not in [text.get_text() for text in axes.texts]


def test_an_empty_frame_says_that_it_is_empty() -> None:
    figure = accuracy_by_bits(BITS, {"zeroq": [None] * 3, "real": [None] * 3}, teacher_accuracy=TEACHER)
    assert "nothing measured yet" in [text.get_text() for text in figure.axes[0].texts]
    assert figure.get_suptitle() == "How does accuracy fall from 8 to 2 bits?"
    to_png(figure)


def test_the_frame_moves_twice_at_most_while_points_come_in() -> None:
    frames, places = [], set()
    shares = [0.985, 0.96, 0.85, 0.7, 0.5, 0.3, 0.11]
    bits = [8, 7, 6, 5, 4, 3, 2]
    for known in range(len(bits) + 1):
        row = [Interval(share, share - 0.01, share + 0.01) for share in shares[:known]]
        figure = accuracy_by_bits(bits, {"zeroq": row + [None] * (7 - known)}, teacher_accuracy=TEACHER)
        frames.append((figure.axes[0].get_xlim(), figure.axes[0].get_ylim()))
        places.add((figure.axes[0].get_position().bounds, tuple(figure.get_size_inches())))
        low, high = figure.axes[0].get_ylim()
        assert all(low <= 100 * share.low and 100 * share.high <= high for share in row)
    assert sum(one != other for one, other in itertools.pairwise(frames)) <= 2
    assert len(places) == 1


def test_sources_differ_in_marker_and_their_names_carry_it() -> None:
    figure = accuracy_by_bits(BITS, dict.fromkeys(("real", "zeroq", "noise"), FALL))
    axes = figure.axes[0]
    assert len({line.get_marker() for line in axes.lines if line.get_marker() != "None"}) == 3
    assert len({text.get_text()[0] for text in axes.texts}) == 3
    assert {text.get_text()[2:]: text.get_color() for text in axes.texts} == {
        source: color_of(source) for source in ("real", "zeroq", "noise")
    }


@pytest.mark.parametrize("sources", [1, 3, 6])
def test_names_stand_apart_and_inside(sources: int) -> None:
    rows = {f"a recipe with a long name {index}": FALL for index in range(sources)}
    figure = accuracy_by_bits(BITS, rows, teacher_accuracy=TEACHER, measure="agreement with the teacher on digits")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert all(not one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    whole = figure.axes[0].get_tightbbox()
    assert whole.x0 >= 0
    assert whole.y0 >= 0
    assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_the_teacher_is_a_dashed_line_with_its_interval() -> None:
    axes = accuracy_by_bits(BITS, {"zeroq": FALL}, teacher_accuracy=TEACHER).axes[0]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [list(line.get_ydata()) for line in dashed] == [pytest.approx([98.7, 98.7])]
    span = axes.patches[0].get_window_extent().transformed(axes.transData.inverted())
    assert (span.y0, span.y1) == pytest.approx((97.4, 99.3))
    assert "teacher 98.7" in [text.get_text() for text in axes.texts]


def test_the_title_tells_the_shares_at_the_fewest_bits_measured() -> None:
    half = [FALL[0], FALL[1], None]
    assert accuracy_by_bits(BITS, {"zeroq": half}).get_suptitle() == "At 4 bits: zeroq 95.0 %"
    both = accuracy_by_bits(BITS, {"noise": [*half[:2], FALL[2]], "real": [FALL[0]] * 3})
    assert both.get_suptitle() == "At 2 bits: real 98.0 %, noise 31.0 %"


def test_rows_that_do_not_fit_the_bits_are_refused() -> None:
    with pytest.raises(DataError, match="'zeroq' has 3 shares for 2 bit widths, try None"):
        accuracy_by_bits([8, 4], {"zeroq": FALL})
    with pytest.raises(DataError, match="each once"):
        accuracy_by_bits([8, 8, 4], {"zeroq": FALL})
    with pytest.raises(DataError, match="0 rows"):
        accuracy_by_bits(BITS, {})

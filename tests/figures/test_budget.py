"""Bars as long as layers are wide, and shares over the bits that they cost."""

import pytest

from dfqlab.errors import DataError
from dfqlab.figures import bit_frontier, bits_by_layer, to_png
from dfqlab.measures import Interval

BITS = {"0": 8, "3.body.0": 5, "head": 2}
SIZES = {"0": 36, "3.body.0": 1152, "head": 160}


def share(value: float) -> Interval:
    return Interval(value, value - 0.03, value + 0.02)


MIXED = {2.0: share(0.3), 2.5: share(0.8), 3.0: share(0.97)}
UNIFORM = {2.0: share(0.28), 3.0: share(0.83)}


def test_a_bar_is_as_long_as_its_layer_is_wide() -> None:
    axes = bits_by_layer(BITS, SIZES).axes[0]
    assert [(bar.get_width(), round(bar.get_y() + bar.get_height() / 2)) for bar in axes.patches] == [
        (8, 0), (5, 1), (2, 2),
    ]  # fmt: skip
    assert [label.get_text() for label in axes.get_yticklabels()] == list(BITS)
    assert [text.get_text() for text in axes.texts][1::2] == ["36 weights", "1,152 weights", "160 weights"]
    bottom, top = axes.get_ylim()
    assert top < 0 < bottom, "the first layer is the topmost"


def test_the_title_tells_the_mean_over_weights_not_over_layers() -> None:
    mean = (8 * 36 + 5 * 1152 + 2 * 160) / (36 + 1152 + 160)
    assert bits_by_layer(BITS, SIZES).get_suptitle() == f"A weight takes {mean:.2f} bits on average"


def test_the_frame_keeps_its_place_while_bits_change() -> None:
    places = {
        (figure.axes[0].get_position().bounds, figure.axes[0].get_xlim(), tuple(figure.get_size_inches()))
        for figure in (bits_by_layer(dict.fromkeys(SIZES, width), SIZES) for width in range(2, 9))
    }
    assert len(places) == 1


def test_many_layers_with_long_names_stay_inside() -> None:
    bits = {f"features.{number}.a.long.path": 4 for number in range(30)}
    figure = bits_by_layer(bits, dict.fromkeys(bits, 2_359_296))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in (*axes.texts, *axes.get_yticklabels())]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_bits_of_other_layers_than_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="one of each by layer"):
        bits_by_layer(BITS, {"0": 36})
    with pytest.raises(DataError, match="one of each by layer"):
        bits_by_layer({}, {})


def test_shares_and_intervals_stand_over_their_bits_whatever_the_order() -> None:
    axes = bit_frontier(
        dict(reversed(MIXED.items())), UNIFORM, measure="agreement with the teacher on 599 digits"
    ).axes[0]
    (mixed, _, (ends,)), (uniform, _, _) = axes.containers
    assert (list(mixed.get_xdata()), list(mixed.get_ydata())) == ([2, 2.5, 3], pytest.approx([30, 80, 97]))
    assert (list(uniform.get_xdata()), list(uniform.get_ydata())) == ([2, 3], pytest.approx([28, 83]))
    reaches = [[point[1] for point in segment] for segment in ends.get_segments()]
    assert reaches == [pytest.approx([27, 32]), pytest.approx([77, 82]), pytest.approx([94, 99])]
    assert mixed.get_marker() != uniform.get_marker()
    assert axes.get_ylabel() == "agreement (%)"


def test_an_interval_of_four_points_sticks_out_from_under_its_dot_and_has_caps() -> None:
    narrow = {3.0: Interval(0.5, 0.48, 0.52)}
    figure = bit_frontier(narrow, narrow, measure="agreement")
    dot, caps, (interval,) = figure.axes[0].containers[0]
    low, high = figure.axes[0].transData.transform(interval.get_segments()[0])[:, 1]
    assert high - low > 1.5 * dot.get_markersize() * figure.dpi / 72
    assert [cap.get_ydata()[0] for cap in caps] == pytest.approx([48, 52])


def test_the_title_compares_where_both_differ_most() -> None:
    title = bit_frontier(MIXED, UNIFORM, measure="agreement with the teacher on 599 digits").get_suptitle()
    assert title.replace("\n", " ") == (
        "3 bits on average: agreement 97.0 % with a width for each layer, 83.0 % with one for all"
    )
    apart = bit_frontier({2.5: share(0.8)}, UNIFORM, measure="agreement").get_suptitle()
    assert apart == "How does agreement grow with bits?"


def test_no_share_of_either_is_refused() -> None:
    with pytest.raises(DataError, match="0 mixed shares and 2 uniform"):
        bit_frontier({}, UNIFORM, measure="agreement")
    to_png(bit_frontier({3.0: share(0.9)}, {3.0: share(0.9)}, measure="agreement"))


def test_none_and_all_are_drawn_though_their_intervals_end_there() -> None:
    none, every = Interval(0.0, 5e-17, 0.56), Interval(1.0, 0.72, 1 - 1e-15)  # as wilson(0, 3), wilson(10, 10)
    axes = bit_frontier({2.0: none, 3.0: every}, {2.0: none}, measure="agreement").axes[0]
    assert list(axes.containers[0][0].get_ydata()) == [0, 100]

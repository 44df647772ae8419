"""What is remembered stands where it is, each source beside it, and ranges end where calibration put them."""

import itertools
import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from dfqlab.errors import DataError
from dfqlab.figures import color_of, layer_statistics, running_statistic, to_png, value_ranges

MEAN, STD = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([0.5, 1.0, 0.25])
FOUND = {"real": (MEAN + 0.1 * STD, STD), "noise": (MEAN + 2 * STD, 0.5 * STD)}


def _dots(figure: Figure) -> dict[str, tuple[list[float], list[float], str]]:
    lines = [line for line in figure.axes[0].lines if line.get_marker() not in ("", "None")]
    return {
        to_hex(line.get_color()): (list(line.get_xdata()), list(line.get_ydata()), line.get_marker()) for line in lines
    }


def test_channels_stand_in_the_order_of_what_is_remembered() -> None:
    figure = layer_statistics(MEAN, STD, FOUND, layer="features.1.bn")
    axes = figure.axes[0]
    boxes = axes.collections[0].get_paths()
    drawn = [(box.get_extents().y0, box.get_extents().y1) for box in boxes]
    assert drawn == [pytest.approx(ends) for ends in ((-2.0, 0.0), (-0.25, 0.25), (0.0, 1.0))]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "0"]
    assert axes.get_ylabel() == "input of features.1.bn"


def test_each_source_has_its_dots_whiskers_colour_and_marker() -> None:
    figure = layer_statistics(MEAN, STD, FOUND, layer="bn")
    dots = _dots(figure)
    order = [1, 2, 0]
    assert set(dots) == {color_of("real"), color_of("noise")}
    for index, (source, (mean, std)) in enumerate(FOUND.items()):
        _, heights, _ = dots[color_of(source)]
        assert heights == pytest.approx(mean[order].tolist())
        whiskers = figure.axes[0].collections[2 + index].get_segments()
        ends = [(whisker[0][1], whisker[1][1]) for whisker in whiskers]
        expected = zip((mean - std)[order].tolist(), (mean + std)[order].tolist(), strict=True)
        assert ends == [pytest.approx(pair) for pair in expected]
    assert len({marker for _, _, marker in dots.values()}) == 2


@pytest.mark.parametrize("channels", [1, 8, 64])
def test_sources_stand_beside_each_other_within_their_channel(channels: int) -> None:
    mean = torch.linspace(-1, 1, channels)
    found = {source: (mean, mean.abs()) for source in ("real", "zeroq", "noise")}
    dots = _dots(layer_statistics(mean, torch.ones(channels), found, layer="bn"))
    for channel in range(channels):
        places = [x[channel] for x, _, _ in dots.values()]
        assert len(set(places)) == 3
        assert all(abs(place - channel) < 0.44 for place in places)


def test_names_at_the_side_carry_the_marker_and_do_not_overlap() -> None:
    figure = layer_statistics(MEAN, STD, FOUND, layer="bn")
    figure.draw_without_rendering()
    texts = figure.axes[0].texts
    assert {text.get_text()[2:] for text in texts} == {"remembered", "real", "noise"}
    assert len({text.get_text()[0] for text in texts}) == 3
    boxes = [text.get_window_extent() for text in texts]
    assert all(not one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_the_title_tells_each_source_s_distance_in_the_median_channel() -> None:
    title = layer_statistics(MEAN, STD, FOUND, layer="bn").get_suptitle().replace("\n", " ")
    assert title == "In the median channel, real is 0.1, noise 2 std from what is remembered"


def test_of_many_channels_some_are_shown_the_extremes_among_them_and_it_says_so() -> None:
    mean = torch.linspace(-3, 5, 200).flip(0)
    figure = layer_statistics(mean, torch.ones(200), {"real": (mean, torch.ones(200))}, layer="bn")
    heights = _dots(figure)[color_of("real")][1]
    assert len(heights) == 64
    assert (heights[0], heights[-1]) == pytest.approx((-3, 5))
    assert heights == sorted(heights)
    assert figure.axes[0].get_xlabel().startswith("64 of 200 channels")


def test_a_channel_that_never_varies_is_drawn() -> None:
    figure = layer_statistics(MEAN, STD * 0, FOUND, layer="bn")
    assert figure.get_suptitle() == "No source gave any channel finite values"
    to_png(figure)


def test_statistics_of_another_layer_are_refused() -> None:
    with pytest.raises(DataError, match=r"'noise' has .*\(2,\).*expected one for each of 3"):
        layer_statistics(MEAN, STD, {**FOUND, "noise": (torch.zeros(2), torch.zeros(2))}, layer="bn")
    with pytest.raises(DataError, match="3 channels and 0 sources"):
        layer_statistics(MEAN, STD, {}, layer="bn")


def test_batches_count_from_one_and_the_target_is_dashed() -> None:
    axes = running_statistic([3.0, 1.0, 2.5], [0.3, 0.37, 0.58], 2.0).axes[0]
    dots, target, line = axes.lines
    assert (list(dots.get_xdata()), list(dots.get_ydata())) == ([1, 2, 3], [3.0, 1.0, 2.5])
    assert dots.get_linestyle() == "None"
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2, 3], [0.3, 0.37, 0.58])
    assert (target.get_linestyle(), list(target.get_ydata())) == ("--", [2.0, 2.0])


def test_the_running_value_is_named_beside_the_target() -> None:
    figure = running_statistic([3.0, 1.0], [0.3, -0.37], 2.0, name="variance")
    assert {text.get_text()[2:] for text in figure.axes[0].texts} == {
        "variance of a batch",
        "running variance",
        "target",
    }
    assert figure.axes[0].get_ylabel() == "variance"
    title = figure.get_suptitle().replace("\n", " ")
    assert title == "After 2 batches the running variance is −0.37; the target is 2"
    assert running_statistic([3.0], [0.3], 2.0).get_suptitle().startswith("After 1 batch ")


def test_a_target_beyond_all_batches_is_inside_the_frame() -> None:
    low, high = running_statistic([0.1, 0.2], [0.0, 0.1], 40.0).axes[0].get_ylim()
    assert low < 0
    assert high > 40


def test_a_running_value_after_each_batch_is_asked_for() -> None:
    with pytest.raises(DataError, match="2 running values for 1 batches"):
        running_statistic([1.0], [1.0, 2.0], 0.0)
    with pytest.raises(DataError, match="0 batches"):
        running_statistic([], [], 0.0)


VALUES = {"real": torch.linspace(-1, 1, 100), "noise": torch.linspace(-4, 4, 50)}
RANGES = {"real": (-0.8, 0.9), "noise": (-3.4, 3.4)}


def test_brackets_end_where_calibration_put_them_and_say_so() -> None:
    axes = value_ranges(VALUES, RANGES, unit="input").axes[0]
    brackets = {to_hex(line.get_color()): line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 4}
    for source, (low, high) in RANGES.items():
        assert list(brackets[color_of(source)]) == [low, low, high, high]
    assert [text.get_text() for text in axes.texts] == ["−0.8", "0.9", "−3.4", "3.4"]


def test_every_value_is_counted_and_tails_are_seen() -> None:
    values = {"real": torch.cat([torch.zeros(100_000), torch.ones(1)])}
    axes = value_ranges(values, {"real": (0.0, 0.5)}, unit="input").axes[0]
    heights, _, baseline = axes.patches[0].get_data()
    drawn = baseline - np.asarray(heights)
    assert (drawn > 0).sum() == 2
    assert drawn[-1] > 0.03
    assert drawn.max() < 0.6, "a row stays below its bracket"


def test_what_the_range_leaves_out_is_pale() -> None:
    axes = value_ranges(VALUES, RANGES, unit="input").axes[0]
    everything, inside = axes.patches[2:4]
    assert everything.get_alpha() < 0.5
    heights, edges, baseline = inside.get_data()
    filled = np.nonzero(baseline - np.asarray(heights))[0]
    width = edges[1] - edges[0]
    assert edges[filled[0]] == pytest.approx(-3.4, abs=width)
    assert edges[filled[-1] + 1] == pytest.approx(3.4, abs=width)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
def test_words_of_ranges_stay_inside(scale: float) -> None:
    values = {source: scale * of for source, of in VALUES.items()}
    ranges = dict.fromkeys(values, (scale * -4.0001, scale * 4.0001))
    figure = value_ranges(values, ranges, unit="input of block 3")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in (*axes.texts, *axes.get_yticklabels())]
    assert all(not one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_the_title_tells_the_widest_range_beside_the_narrowest() -> None:
    assert value_ranges(VALUES, RANGES, unit="input").get_suptitle() == "noise asks for 4 times the range of real"
    one = value_ranges({"real": VALUES["real"]}, {"real": (-0.8, 0.9)}, unit="input")
    assert one.get_suptitle() == "The range for real goes from −0.8 to 0.9"
    same = value_ranges(VALUES, dict.fromkeys(VALUES, (-1.0, 1.0)), unit="input").get_suptitle()
    assert same == "Every source asks for nearly the same range, −1 to 1"


def test_equal_values_and_values_that_are_not_finite_are_drawn() -> None:
    to_png(value_ranges({"real": torch.zeros(5)}, {"real": (0.0, 0.0)}, unit="input"))
    odd = torch.tensor([math.nan, math.inf, 1.0])
    to_png(value_ranges({"real": odd}, {"real": (0.0, 1.0)}, unit="input"))


def test_a_source_without_values_or_range_is_refused() -> None:
    with pytest.raises(DataError, match="expected one of each"):
        value_ranges(VALUES, {"real": (0.0, 1.0)}, unit="input")
    with pytest.raises(DataError, match=r"'real': 100 finite values, range 1\.0 to 0\.0"):
        value_ranges({"real": VALUES["real"]}, {"real": (1.0, 0.0)}, unit="input")
    with pytest.raises(DataError, match="'real': 0 finite values"):
        value_ranges({"real": torch.zeros(0)}, {"real": (0.0, 1.0)}, unit="input")

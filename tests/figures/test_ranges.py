"""Ranges are drawn where they end, over every value, and what they give up is told."""

import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from dfqlab.errors import DataError
from dfqlab.figures import clipped_values, ranges_by_rule, to_png
from dfqlab.figures.stairs import ERROR_COLORS

VALUES = torch.linspace(-4, 6, 1001)
RANGES = {"minmax": (-4.0, 6.0), "mse": (-2.5, 3.5), "bn": (-2.0, 3.0)}
RATIOS = {"minmax": 8.25, "mse": 12.5, "bn": -1.0}


def marks(low: float, high: float, count: int) -> torch.Tensor:
    return torch.linspace(low, high, count)


def clipped(low: float, high: float, count: int = 8) -> Figure:
    grid = marks(low, high, count)
    nearest = grid[(VALUES[:, None] - grid).abs().argmin(1)]
    step = (high - low) / (count - 1)
    outside = (VALUES - (low + high) / 2).abs() > (high - low + step) / 2
    return clipped_values(VALUES, nearest, outside, grid, of="output of a")


def test_bars_end_where_the_ranges_do_in_their_order() -> None:
    axes = ranges_by_rule(VALUES, RANGES, RATIOS, of="output of a").axes[1]
    bars = [line for line in axes.lines if line.get_linewidth() > 3]
    assert [tuple(bar.get_xdata()) for bar in bars] == list(RANGES.values())
    assert [bar.get_ydata()[0] for bar in bars] == [0, 1, 2]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(RANGES)
    assert [text.get_text() for text in axes.texts] == ["8.2 dB", "12.5 dB", "−1.0 dB", "signal\nto error"]


def test_the_title_tells_the_best_rule_and_the_worst_and_both_are_bold() -> None:
    figure = ranges_by_rule(VALUES, RANGES, RATIOS, of="output of a")
    assert figure.get_suptitle() == "Signal to error: mse best, 12.5 dB; bn worst, −1.0 dB"
    assert [text.get_fontweight() for text in figure.axes[1].texts[:3]] == ["normal", "bold", "bold"]


def test_the_histogram_stands_over_the_same_axis_and_counts_every_value() -> None:
    values = torch.cat([torch.zeros(10_000), torch.ones(1)])
    figure = ranges_by_rule(values, {"minmax": (0.0, 1.0)}, {"minmax": 9.0}, of="output of a")
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    heights = figure.axes[0].patches[0].get_data().values
    assert (heights > 0).sum() == 2
    assert heights[heights > 0][-1] > 0.05, "a tail is seen"


def test_a_rule_without_a_ratio_a_range_that_ends_before_it_begins_and_no_values_are_refused() -> None:
    with pytest.raises(DataError, match="one of each by rule"):
        ranges_by_rule(VALUES, RANGES, {"mse": 3.0}, of="a")
    with pytest.raises(DataError, match=r"'mse': range 1\.0 to 0\.0"):
        ranges_by_rule(VALUES, {"mse": (1.0, 0.0)}, {"mse": 3.0}, of="a")
    with pytest.raises(DataError, match="got none"):
        ranges_by_rule(VALUES[:0], RANGES, RATIOS, of="a")
    with pytest.raises(DataError, match="got NaN"):
        clipped_values(torch.tensor([math.nan]), torch.zeros(1), torch.tensor([False]), marks(0, 1, 2), of="a")
    with pytest.raises(DataError, match="0 marks"):
        clipped_values(VALUES, VALUES, VALUES > 9, VALUES[:0], of="a")


def test_marks_stand_where_the_codes_do_and_of_many_only_the_ends() -> None:
    ruler = clipped(-2.0, 1.5).axes[0].collections[0]
    assert [segment[0][0] for segment in ruler.get_segments()] == pytest.approx(marks(-2.0, 1.5, 8).tolist())
    many = clipped(-2.0, 1.5, 64).axes[0].collections[0]
    assert [segment[0][0] for segment in many.get_segments()] == pytest.approx([-2.0, 1.5])


def bars(figure: Figure, kind: str) -> StepPatch:
    (found,) = [bar for bar in figure.axes[0].patches if bar.get_edgecolor() == to_rgba(ERROR_COLORS[kind])]
    return found


def test_what_lies_half_a_step_beyond_the_marks_is_cross_hatched_and_nothing_else() -> None:
    figure = clipped(-2.0, 1.5)
    heights, edges, _ = bars(figure, "clipping").get_data()
    drawn = np.nonzero(heights)[0]
    width = edges[1] - edges[0]
    below = max(edges[at + 1] for at in drawn if edges[at] < 0)
    above = min(edges[at] for at in drawn if edges[at] > 0)
    assert (below, above) == pytest.approx((-2.25, 1.75), abs=width)
    inside = bars(figure, "rounding").get_data().values
    counted, _ = np.histogram(VALUES, edges)
    assert (((inside > 0) ^ (heights > 0)) == (counted > 0)).all(), "each value is of one kind"
    assert not bars(clipped(-4.0, 6.0), "clipping").get_data().values.any()


def test_the_key_shows_what_the_histogram_does_colour_and_hatch() -> None:
    figure = clipped(-2.0, 1.5)
    swatches = {patch.get_edgecolor(): patch.get_hatch() for patch in figure.axes[1].patches if not patch.get_fill()}
    drawn = {bar.get_edgecolor(): bar.get_hatch() for bar in (bars(figure, "rounding"), bars(figure, "clipping"))}
    assert swatches == drawn
    assert len(set(drawn.values())) == 2


def test_both_errors_are_told_with_their_shares() -> None:
    figure = clipped(-2.0, 1.5)
    grid = marks(-2.0, 1.5, 8).double()
    x = VALUES.double()
    error = (grid[(x[:, None] - grid).abs().argmin(1)] - x).square()
    share = float(error[(x < -2.25) | (x > 1.75)].sum() / error.sum())
    told = " ".join(text.get_text() for text in figure.axes[1].texts)
    assert f"clipping: {100 * share:.0f} %" in told
    assert f"rounding: {100 * (1 - share):.0f} %" in told
    assert "no value is clipped" in " ".join(text.get_text() for text in clipped(-4, 6).axes[1].texts).replace(
        "\n", " "
    )


def test_the_title_tells_the_share_that_is_clipped() -> None:
    beyond = 100 * float(((VALUES < -2.25) | (VALUES > 1.75)).double().mean())
    assert clipped(-2.0, 1.5).get_suptitle() == f"{beyond:.2g} % of the values are clipped"


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_one_value_over_and_over_is_drawn(value: float) -> None:
    same = torch.full((5,), value)
    to_png(ranges_by_rule(same, {"minmax": (value, value)}, {"minmax": math.inf}, of="a"))
    to_png(clipped_values(same, same, torch.zeros(5, dtype=torch.bool), torch.tensor([value]), of="a"))


def test_words_stay_inside_the_figure() -> None:
    figure = ranges_by_rule(VALUES, {"image_mean": (-1.0, 1.0)}, {"image_mean": -12.5}, of="output of a block")
    figure.draw_without_rendering()
    axes = figure.axes[1]
    boxes = [text.get_window_extent() for text in (*axes.texts, *axes.get_yticklabels(), axes.xaxis.label)]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)

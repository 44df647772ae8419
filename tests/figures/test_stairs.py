"""The stairs show what the grid does, and every bit of squared error has its kind."""

import itertools

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.figures import channel_ranges, staircase, to_png
from dfqlab.figures.style import CLIPPING, ROUNDING

LINE = torch.linspace(-2, 2, 200)


def _stair(step: float = 0.5, end: float = 1.0) -> tuple[Tensor, Tensor]:
    return LINE, (LINE / step).round().mul(step).clamp(-end, end)


def _drawn(values: Tensor, end: float = 1.0) -> Figure:
    rounded = (values / 0.5).round() * 0.5
    return staircase(values, rounded.clamp(-end, end), rounded.abs() > end, [_stair(end=end), _stair(0.1), _stair(1.0)])


def _words(figure: Figure) -> list[str]:
    return [" ".join(text.get_text().split()) for axes in figure.axes for text in axes.texts]


def test_shares_of_the_squared_error_are_those_of_the_values() -> None:
    values = torch.tensor([0.2, -0.2, 0.7, 1.4, -1.3])  # rounding 0.04 + 0.04 + 0.04, clipping 0.16 + 0.09
    words = _words(_drawn(values))
    assert "rounding: 32 % of the squared error" in words
    assert "clipping: 68 % of the squared error" in words


def test_the_title_tells_the_share_of_the_energy_and_the_larger_error() -> None:
    values = torch.tensor([0.2, -0.2, 0.7, 1.4, -1.3])
    percent = 100 * (0.12 + 0.25) / float((values**2).sum())
    assert _drawn(values).get_suptitle() == f"The error is {percent:.2g} % of the signal's energy, mostly clipping"
    assert _drawn(values[:3]).get_suptitle().endswith("mostly rounding")


def test_the_title_stays_on_one_line_while_a_slider_moves() -> None:
    heights = set()
    for step in (1e-6, 1e-3, 0.01, 0.3, 0.9, 5.0):
        rounded = (LINE / step).round() * step
        figure = staircase(LINE, rounded, torch.zeros(200, dtype=torch.bool), [(LINE, rounded)])
        assert "\n" not in figure.get_suptitle()
        figure.draw_without_rendering()
        names = [label.get_window_extent() for label in figure.axes[1].get_xticklabels()]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(names))
        heights.add(figure.get_size_inches()[1])
    assert len(heights) == 1


def test_nothing_is_clipped_beyond_the_title_and_the_panels_keep_their_places() -> None:
    few, many = _drawn(torch.tensor([0.2, 1.4])), _drawn(torch.linspace(-1.9, 1.9, 4000))
    for one, other in zip(few.axes, many.axes, strict=True):
        assert one.get_position().bounds == other.get_position().bounds
    many.draw_without_rendering()
    assert not many.axes[0].get_tightbbox().overlaps(many.axes[1].get_tightbbox())
    for axes in many.axes:
        box = axes.get_tightbbox()
        assert box.x0 >= 0
        assert box.x1 <= many.bbox.x1
        assert box.y0 >= 0


def test_the_two_errors_differ_in_colour_and_in_hatch() -> None:
    right = _drawn(torch.tensor([0.2, -0.2, 0.7, 1.4, -1.3])).axes[1]
    hatches = {to_hex(patch.get_edgecolor()): patch.get_hatch() for patch in right.patches if patch.get_hatch()}
    assert set(hatches) == {ROUNDING, CLIPPING}
    assert len(set(hatches.values())) == 2


def test_every_error_is_in_one_of_the_two_histograms() -> None:
    values = torch.linspace(-1.9, 1.9, 999)
    right = _drawn(values).axes[1]
    counted = sum(
        sum(count for count in patch.get_data().values if count >= 1) for patch in right.patches if patch.get_hatch()
    )
    assert counted == 999


def test_the_first_stair_is_strong_and_the_others_are_thin() -> None:
    left = _drawn(torch.tensor([0.2, 1.4])).axes[0]
    strong = [line for line in left.lines if line.get_linestyle() == "-"]
    assert len(strong) == 1
    assert torch.equal(torch.tensor(strong[0].get_ydata()).float(), _stair()[1])
    others = left.collections[0]
    assert len(others.get_segments()) == 2
    assert others.get_linewidth()[0] < strong[0].get_linewidth() / 2


def test_the_diagonal_is_where_nothing_changes() -> None:
    dashed = [line for line in _drawn(torch.tensor([0.2, 1.4])).axes[0].lines if line.get_linestyle() == "--"]
    assert [list(line.get_xdata()) == list(line.get_ydata()) for line in dashed] == [True]


def test_the_histogram_stays_below_the_stairs() -> None:
    left = _drawn(torch.linspace(-1.9, 1.9, 999)).axes[0]
    top = max(left.patches[0].get_data().values)
    assert left.get_ylim()[0] < top < float(_stair()[1].min())


def test_no_clipped_values_equal_values_and_no_error_are_drawn() -> None:
    none = torch.zeros(5, dtype=torch.bool)
    for value in (0.0, 0.5, -3.0):
        same = torch.full((5,), value)
        figure = staircase(same, same, none, [(same, same)])
        assert figure.get_suptitle() == "No error: every weight lies on the grid"
        assert "clipping: no weight is clipped" in _words(figure)
        to_png(figure)
    figure = staircase(torch.full((5,), 3.0), torch.ones(5), ~none, [_stair()])
    assert {"rounding: no weight is inside", "clipping: 100 % of the squared error"} <= set(_words(figure))
    assert staircase(torch.zeros(5), torch.ones(5), none, [_stair()]).get_suptitle().startswith("All of the energy")


def test_values_that_cannot_be_drawn_are_refused() -> None:
    values, inside = torch.ones(3), torch.zeros(3, dtype=torch.bool)
    with pytest.raises(DataError, match="3 values and 0 stairs"):
        staircase(values, values, inside, [])
    with pytest.raises(DataError, match="0 values"):
        staircase(values[:0], values[:0], inside[:0], [_stair()])
    with pytest.raises(DataError, match="expected finite values"):
        staircase(values * float("nan"), values, inside, [_stair()])


ROWS = torch.tensor([[-0.1, 0.0, 0.1], [-0.9, 0.2, 0.9], [0.0, 0.1, 0.3]])


def test_bars_go_from_the_smallest_to_the_largest_weight() -> None:
    axes = channel_ranges(ROWS).axes[0]
    bars = axes.collections[0].get_segments()
    assert [bar[:, 0].tolist() for bar in bars] == [
        pytest.approx(ends) for ends in ([-0.1, 0.1], [-0.9, 0.9], [0.0, 0.3])
    ]
    span = axes.patches[0].get_window_extent().transformed(axes.transData.inverted())
    assert (span.x0, span.x1) == pytest.approx((-0.9, 0.9))
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first channel is the topmost"


def test_each_channel_says_how_much_of_the_shared_scale_it_uses() -> None:
    words = [text.get_text() for text in channel_ranges(ROWS).axes[0].texts]
    assert [word for word in words if "%" in word] == ["11 %", "100 %", "17 %"]


def test_the_title_tells_the_widest_beside_the_narrowest() -> None:
    assert channel_ranges(ROWS).get_suptitle() == "The widest channel spans 9 times the narrowest"
    assert channel_ranges(ROWS * 0).get_suptitle() == "Every channel is one number over and over"
    dead = torch.cat([ROWS, torch.zeros(1, 3)])
    assert channel_ranges(dead).get_suptitle() == "1 of 4 channels is one number over and over"


def test_of_many_channels_the_first_are_shown_and_it_says_so() -> None:
    weight = torch.linspace(0.1, 1, 72)[:, None] * torch.tensor([-1.0, 1.0])
    axes = channel_ranges(weight).axes[0]
    assert len(axes.collections[0].get_segments()) == 32
    assert axes.get_ylabel() == "first 32 of 72 channels"
    assert channel_ranges(weight[:32]).axes[0].get_ylabel() == "output channel"


@pytest.mark.parametrize("channels", [1, 3, 12, 13, 32])
def test_words_beside_bars_do_not_overlap(channels: int) -> None:
    figure = channel_ranges(torch.linspace(0.1, 1, channels)[:, None] * torch.tensor([-1.0, 1.0]))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in (*axes.texts, *axes.get_yticklabels())]
    assert all(not one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_channels_without_finite_weights_are_refused() -> None:
    with pytest.raises(DataError, match=r"got shape \(2, 0\)"):
        channel_ranges(torch.zeros(2, 0))
    with pytest.raises(DataError, match="NaN"):
        channel_ranges(ROWS * float("nan"))

"""Lines are on an axis that shows them, and their names stand apart."""

import itertools
import math

import pytest
from matplotlib.figure import Figure

from dfqlab.errors import DataError
from dfqlab.figures import batch_norm_view, layer_errors, loss_curve, to_png

LAYERS = [f"features.{i // 3}.conv.{i % 3}.1" for i in range(52)]


def _ticks(figure: Figure, axis: str) -> list[str]:
    return [label.get_text() for label in getattr(figure.axes[0], f"get_{axis}ticklabels")()]


def test_the_axis_is_logarithmic_only_where_values_span_decades() -> None:
    assert loss_curve([1, 2, 3], {"loss": [3.0, 0.3, 0.03]}).axes[0].get_yscale() == "log"
    assert loss_curve([1, 2, 3], {"loss": [3.0, 2.0, 1.0]}).axes[0].get_yscale() == "linear"
    assert loss_curve([1, 2, 3], {"loss": [3.0, -0.3, 0.03]}).axes[0].get_yscale() == "linear"
    assert batch_norm_view(["a", "b"], {"noise": (900.0, 400.0), "zeroq": (0.1, 0.1)}).axes[0].get_yscale() == "log"


def test_a_linear_axis_starts_at_zero_and_everything_is_inside() -> None:
    for values in ([3.0, 2.0, 1.0], [300.0, 2.0, 0.001], [0.0, 0.0, 0.0], [1.0, 0.0, 50.0]):
        low, high = loss_curve([1, 2, 3], {"loss": values}).axes[0].get_ylim()
        assert all(low <= value <= high for value in values if value > 0)
        assert low == 0 or max(values) > 12 * min(filter(None, values))


def test_a_logarithmic_axis_has_plain_numbers() -> None:
    figure = batch_norm_view(["a", "b"], {"noise": (100.0, 30.0), "zeroq": (0.1, 0.1)})
    figure.draw_without_rendering()
    assert {"0.1", "1", "10", "100"} <= set(_ticks(figure, "y"))


@pytest.mark.parametrize("sources", [2, 4, 9])
def test_names_at_the_ends_never_overlap(sources: int) -> None:
    distances = {f"source {i}": (1.0, 0.5 + 0.0001 * i) for i in range(sources)} | {"far": (40.0, 30.0)}
    figure = batch_norm_view(["a", "b"], distances)
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == sources + 1
    assert all(below.y1 <= above.y0 + 1 for below, above in itertools.pairwise(boxes))
    assert boxes[0].y0 >= 0
    assert boxes[-1].y1 <= figure.bbox.y1
    assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_names_stand_in_the_order_of_the_lines() -> None:
    figure = batch_norm_view(["a", "b"], {"noise": (1.0, 3.0), "zeroq": (1.0, 1.0), "real": (1.0, 2.0)})
    heights = {text.get_text(): text.get_window_extent().y0 for text in figure.axes[0].texts}
    assert heights["zeroq"] < heights["real"] < heights["noise"]


def test_few_layers_are_all_named_and_many_are_named_from_the_first_to_the_last() -> None:
    assert _ticks(batch_norm_view(["bn1", "bn2", "bn3", "head"], {"zeroq": (1.0,) * 4}), "x") == [
        "bn1",
        "bn2",
        "bn3",
        "head",
    ]
    named = _ticks(batch_norm_view(LAYERS, {"zeroq": (1.0,) * 52}), "x")
    assert (named[0], named[-1]) == (LAYERS[0], LAYERS[-1])
    assert 5 <= len(named) <= 8
    assert _ticks(batch_norm_view(["a" * 60, "b"], {"zeroq": (1.0, 1.0)}), "x")[0] == "…" + "a" * 19


@pytest.mark.parametrize("layers", [1, 2, 4, 17, 52, 161])
def test_names_of_layers_do_not_overlap(layers: int) -> None:
    figure = batch_norm_view([f"stage.{i}.block.bn" for i in range(layers)], {"zeroq": (1.0,) * layers})
    figure.draw_without_rendering()
    ends = [label.get_window_extent().x1 for label in figure.axes[0].get_xticklabels()]
    line_height = 1.4 * 12 * figure.dpi / 72
    assert all(right - left > line_height for left, right in itertools.pairwise(ends))


def test_a_value_that_is_not_finite_is_a_gap() -> None:
    figure = batch_norm_view(["a", "b", "c"], {"noise": (1.0, math.inf, 2.0), "zeroq": (math.nan,) * 3})
    line = figure.axes[0].lines[0].get_ydata()
    assert math.isnan(line[1])
    assert [text.get_text() for text in figure.axes[0].texts] == ["noise"]
    to_png(figure)
    to_png(loss_curve([1, 2], {"loss": [math.nan, math.nan]}))


def test_the_title_tells_what_the_lines_show() -> None:
    distances = {"noise": (1.0, 2.0, 9.0), "zeroq": (0.1, 0.3, 0.2), "real": (0.5, 0.5, 0.5)}
    title = batch_norm_view(["a", "b", "c"], distances).get_suptitle().replace("\n", " ")
    assert title == "In the median layer, zeroq is 0.2, real 0.5, noise 2 std from what is remembered"
    many = {f"source {i}": (1.0 + i,) for i in range(9)}
    title = batch_norm_view(["a"], many).get_suptitle().replace("\n", " ")
    assert title == "In the median layer, source 0 is 1, source 8 9 std from what is remembered"
    assert loss_curve([1, 500], {"loss": [3.0, 0.25]}).get_suptitle() == "The loss goes from 3 to 0.25 by step 500"


def test_lines_of_another_length_are_refused() -> None:
    with pytest.raises(DataError, match="'zeroq' has 1 values for 2 layers"):
        batch_norm_view(["a", "b"], {"zeroq": (1.0,)})
    with pytest.raises(DataError, match="nothing to draw"):
        batch_norm_view([], {})
    with pytest.raises(DataError, match="nothing to draw"):
        loss_curve([], {"loss": []})


def test_the_layer_that_loses_most_is_named_and_a_judge_may_leave_layers_out() -> None:
    judgements = {"zeroq, seed 1": {"stem": 21.0, "head": 14.0}, "dsg, seed 1": {"stem": 20.0}}
    figure = layer_errors(judgements)
    assert "head loses most by itself, says zeroq, seed 1" in figure.get_suptitle()
    by_judge = [line.get_ydata() for line in figure.axes[0].lines[:2]]
    assert list(by_judge[0]) == [21.0, 14.0]
    assert by_judge[1][0] == 20.0
    assert math.isnan(by_judge[1][1])

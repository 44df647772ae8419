"""Each random rounding has its line, each that has a name its dot."""

import math

import pytest
import torch

from dfqlab.errors import DataError
from dfqlab.figures import random_roundings, to_png

THROWN = torch.tensor([0.1, 0.2, 0.15, 0.3])
MARKED = {"nearest": 0.18, "squant": 0.05}


def test_lines_and_dots_stand_where_the_errors_are() -> None:
    axes = random_roundings(THROWN, MARKED, measure="error").axes[0]
    lines = axes.collections[0].get_segments()
    assert [segment[0][0] for segment in lines] == pytest.approx(THROWN.tolist())
    dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "o"]
    assert dots == [(0.18, 1), (0.05, 2)]
    assert [text.get_text() for text in axes.texts] == ["0.180", "0.050"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["4 at random", "nearest", "squant"]


def test_the_title_counts_those_that_beat_the_first_name_which_is_dashed() -> None:
    figure = random_roundings(THROWN, MARKED, measure="error")
    assert figure.get_suptitle() == "2 of 4 random roundings beat nearest"
    (dashed,) = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert list(dashed.get_xdata()) == [0.18, 0.18]


def test_the_axis_begins_at_no_error_and_holds_them_all() -> None:
    low, high = random_roundings(THROWN, {"nearest": 0.9}, measure="error").axes[0].get_xlim()
    assert low == 0
    assert high > 0.9


def test_no_roundings_and_errors_that_are_none_are_refused() -> None:
    for thrown, marked in ((THROWN[:0], MARKED), (THROWN, {}), (-THROWN, MARKED), (THROWN, {"nearest": math.nan})):
        with pytest.raises(DataError, match="expected one of each or more"):
            random_roundings(thrown, marked, measure="error")


def test_roundings_without_error_are_drawn() -> None:
    to_png(random_roundings(torch.zeros(3), {"nearest": 0.0}, measure="error"))

"""Both layers' reach of each channel, and where they meet."""

import itertools

import pytest
import torch

from dfqlab.errors import DataError
from dfqlab.figures import meeting_reaches, to_png

FIRST, SECOND = torch.tensor([4.0, 0.5, 2.0]), torch.tensor([1.0, 2.0, 0.5])
MET = (FIRST * SECOND).sqrt()
NAMES = ("a", "b")


def test_every_channel_has_both_reaches_and_their_meeting_in_its_row() -> None:
    axes = meeting_reaches(FIRST, SECOND, MET, names=NAMES).axes[0]
    drawn = {line.get_marker(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    for marker, reach in (("o", FIRST), ("^", SECOND), ("D", MET)):
        assert drawn[marker] == (pytest.approx(reach.tolist()), [0, 1, 2])
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.texts] == ["● a", "▲ b", "◆ both, equalized"]


def test_the_title_tells_how_far_channels_are_apart_before_and_after() -> None:
    title = meeting_reaches(FIRST, SECOND, MET, names=NAMES).get_suptitle().replace("\n", " ")
    assert title == "Widest channel over narrowest: 8 in a, 4 in b; equalized, 2 in both"


def test_of_many_channels_the_first_are_shown_and_it_says_so() -> None:
    many = torch.rand(50, generator=torch.Generator().manual_seed(0)) + 0.1
    axes = meeting_reaches(many, many, many, names=NAMES).axes[0]
    assert len(axes.lines[0].get_xdata()) == 32
    assert axes.get_ylabel() == "first 32 of 50 channels"


def test_words_do_not_run_into_each_other() -> None:
    figure = meeting_reaches(FIRST, SECOND, MET, names=("features.10.body.0", "features.10.body.3"))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))
    assert boxes[0].x0 >= 0
    assert boxes[-1].x1 <= figure.bbox.x1
    to_png(figure)


@pytest.mark.parametrize("second", [SECOND[:2], SECOND * 0, SECOND[:0]])
def test_other_channels_and_none_at_all_are_refused(second: torch.Tensor) -> None:
    with pytest.raises(DataError, match="as many of each"):
        meeting_reaches(FIRST[: len(second)], second, MET, names=NAMES)

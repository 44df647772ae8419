"""The table says of each model what was measured, where it was measured."""

import itertools
from dataclasses import replace

import pytest

from dfqlab.errors import DataError
from dfqlab.figures import DeployedRow, color_of, deployed_table, to_png
from dfqlab.measures import Interval

TEACHER = Interval(0.99, 0.978, 0.995)
GOOD = DeployedRow(Interval(0.983, 0.97, 0.991), Interval(0.982, 0.967, 0.99), 10_558, holds=True)
NEAR = DeployedRow(Interval(0.97, 0.953, 0.98), Interval(0.975, 0.96, 0.985), 10_558, holds=True)
FAR = DeployedRow(Interval(0.424, 0.385, 0.464), Interval(0.42, 0.38, 0.46), 1_234_567, holds=False)
ROWS = {"zeroq W4A4": GOOD, "noise W4A4": NEAR, "clipped noise W3A3": FAR}


def test_dots_and_intervals_stand_where_the_shares_are_in_the_colour_of_their_source() -> None:
    axes = deployed_table(ROWS, TEACHER).axes[0]
    drawn = [(list(line.get_xdata()), list(line.get_ydata()), line.get_color()) for line in axes.lines]
    for height, (name, row) in enumerate(ROWS.items()):
        share, color = row.accuracy, color_of(name)
        assert (pytest.approx([100 * share.low, 100 * share.high]), [height, height], color) in drawn
        assert (pytest.approx([100 * share.value]), [height], color) in drawn
    assert [label.get_text() for label in axes.get_yticklabels()] == list(ROWS)
    bottom, top = axes.get_ylim()
    assert top < 0 < bottom, "the first row is the topmost"


def test_the_ends_of_an_interval_are_seen_though_the_dot_covers_it() -> None:
    axes = deployed_table(ROWS, TEACHER).axes[0]
    intervals = [line for line in axes.lines if line.get_marker() == "|"]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert len(intervals) == len(dots) == len(ROWS)
    for interval, dot in zip(intervals, dots, strict=True):
        assert interval.get_markersize() > 2 * dot.get_markersize()


def test_the_teacher_is_a_dashed_line_with_its_interval() -> None:
    axes = deployed_table(ROWS, TEACHER, measure="accuracy on 599 digits").axes[0]
    (dashed,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert list(dashed.get_xdata()) == pytest.approx([99, 99])
    span = axes.patches[0].get_window_extent().transformed(axes.transData.inverted())
    assert (span.x0, span.x1) == pytest.approx((97.8, 99.5))
    assert axes.get_xlabel() == "accuracy on 599 digits (%); dashed: teacher 99.0"


def test_every_number_is_told_in_its_column() -> None:
    figure = deployed_table(ROWS, TEACHER)
    figure.draw_without_rendering()
    told: dict[float, list[str]] = {}
    for text in figure.axes[1].texts:
        told.setdefault(text.get_position()[0], []).append(text.get_text())
    assert list(told.values()) == [
        ["accuracy", "98.3 [97.0, 99.1]", "97.0 [95.3, 98.0]", "42.4 [38.5, 46.4]"],
        ["agreement", "98.2 [96.7, 99.0]", "97.5 [96.0, 98.5]", "42.0 [38.0, 46.0]"],
        ["kB", "10.6", "10.6", "1,235"],
        ["holds", "yes", "yes", "no"],
    ]


def test_numbers_stand_beside_their_dots() -> None:
    figure = deployed_table(ROWS, TEACHER)
    figure.draw_without_rendering()
    dots, numbers = figure.axes
    for at, row in enumerate(ROWS.values()):
        (told,) = (t for t in numbers.texts if t.get_text().startswith(f"{100 * row.accuracy.value:.1f} ["))
        height = told.get_window_extent()
        assert height.y0 < dots.transData.transform((50, at))[1] < height.y1


def test_the_title_tells_whose_interval_overlaps_that_of_the_best() -> None:
    titles = {
        "No model was made yet": {},
        "alone, the only row so far": {"alone": GOOD},
        "1 of 2 other intervals overlaps that of the best, zeroq W4A4": ROWS,
        "No other interval overlaps that of the best, good": {"far": FAR, "good": GOOD},
        "2 of 2 other intervals overlap that of the best, c": {"a": NEAR, "b": NEAR, "c": GOOD},
    }
    for title, rows in titles.items():
        assert deployed_table(rows, TEACHER).get_suptitle() == title
    touching = replace(NEAR, accuracy=Interval(0.96, 0.94, GOOD.accuracy.low))
    assert deployed_table({"a": touching, "c": GOOD}, TEACHER).get_suptitle().startswith("1 of 1")


@pytest.mark.parametrize("count", [0, 1, 12])
def test_nothing_overlaps_or_leaves_the_picture(count: int) -> None:
    rows = {f"{n:02d} clipped noise W3 adaround": replace(FAR, bytes=99_999) for n in range(count)}
    figure = deployed_table(rows, TEACHER, measure="accuracy on 50,000 held-out images of a validation set")
    figure.draw_without_rendering()
    dots, numbers = figure.axes
    boxes = [text.get_window_extent() for text in (*numbers.texts, *dots.get_yticklabels(), dots.xaxis.label)]
    assert all(not one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)
    to_png(figure)


def test_more_rows_than_can_be_read_are_refused() -> None:
    with pytest.raises(DataError, match="13 rows: expected 12 or fewer"):
        deployed_table({str(n): GOOD for n in range(13)}, TEACHER)

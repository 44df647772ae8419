"""Boxes in the order of the operations, and arrows that say what they carry."""

import itertools

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from dfqlab.errors import DataError
from dfqlab.figures import Station, operation_paths, to_png
from dfqlab.figures.style import MUTED, ROUNDING

FILE = [
    Station("DequantizeLinear", "float32"),
    Station("Conv", "float32", ("int8 weights, 512x512x3x3", "int32 biases, 512")),
    Station("QuantizeLinear", "uint8"),
    Station("Clip", "uint8", ("0 to 15",)),
    Station("DequantizeLinear", "float32"),
]
RUN = [Station("QLinearConv", "uint8", ("int8 weights, 8x1x3x3", "int32 biases, 8")), Station("Clip", "uint8")]


def drawn() -> Figure:
    figure = operation_paths({"in the file": FILE, "executed": RUN})
    figure.draw_without_rendering()
    return figure


def words(figure: Figure) -> list[str]:
    return [text.get_text().replace("\n", "") for text in figure.axes[0].texts if text.get_text()]


def test_every_operation_has_a_box_and_its_name_in_order() -> None:
    figure = drawn()
    boxes = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch)]
    assert len(boxes) == len(FILE) + len(RUN)
    names = [station.operation for station in (*FILE, *RUN)]
    assert [word for word in words(figure) if word in names] == names


def test_arrows_carry_the_type_in_front_of_each_operation_and_the_last_leaves() -> None:
    told = [text for text in drawn().axes[0].texts if text.get_text() in ("uint8", "float32")]
    carried = ["uint8", "float32", "float32", "uint8", "uint8", "float32", "uint8", "uint8", "uint8"]
    assert [text.get_text() for text in told] == carried
    colors = [to_hex(text.get_color()) for text in told]
    assert colors == [ROUNDING if kind == "uint8" else MUTED for kind in carried]


def test_constants_stand_under_their_operation() -> None:
    assert {"int8 weights, 512x512x3x3int32 biases, 512", "0 to 15"} <= set(words(drawn()))


def test_the_title_tells_how_many_results_are_reals() -> None:
    assert drawn().get_suptitle() == "Results that are reals: 3 of 5 in the file, 0 of 2 executed"
    assert operation_paths({"a": RUN}, title="A sentence").get_suptitle() == "A sentence"


def test_nothing_overlaps_or_leaves_the_picture() -> None:
    figure = drawn()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    assert all(not one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)
    to_png(figure)


def test_names_stay_inside_their_boxes() -> None:
    figure = drawn()
    names = [text for text in figure.axes[0].texts if text.get_text().replace("\n", "").endswith(("Linear", "Conv"))]
    frames = [p.get_window_extent() for p in figure.axes[0].patches if isinstance(p, FancyBboxPatch)]
    for name in names:
        box = name.get_window_extent()
        assert any(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 <= frame.y1 for frame in frames)


@pytest.mark.parametrize("paths", [{}, {"nothing": []}, {"six": [*FILE, FILE[0]]}])
def test_ways_that_cannot_be_drawn_are_refused(paths: dict[str, list[Station]]) -> None:
    with pytest.raises(DataError, match="1 to 5 operations"):
        operation_paths(paths)

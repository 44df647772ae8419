"""Every number stands where its row and column meet, shades order a column, and the best that was made is framed."""

import itertools

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from dfqlab.errors import DataError
from dfqlab.figures import color_of, to_png, transfer_matrix

# MixMix, Table 1.
TABLE = {
    "ResNet-50": {"real ImageNet": 0.018, "zeroq from ResNet-50": 0.049, "zeroq from MobileNetV2": 0.144},
    "MobileNetV2": {"real ImageNet": 0.722, "zeroq from ResNet-50": 4.927, "zeroq from MobileNetV2": 1.498},
}


def _framed(axes: Axes) -> set[tuple[int, int]]:
    """(row, column) of every frame."""
    centres = ((p.get_y() + p.get_height() / 2, p.get_x() + p.get_width() / 2) for p in axes.patches)
    assert all(isinstance(patch, Rectangle) for patch in axes.patches)
    return {(round(y), round(x)) for y, x in centres}


def _light(axes: Axes) -> np.ndarray:
    return np.asarray(axes.images[0].get_array())[..., :3] @ (0.2126, 0.7152, 0.0722)


def test_numbers_stand_where_what_was_made_meets_who_judges() -> None:
    axes = transfer_matrix(TABLE, measure="loss", best="low").axes[0]
    written = {text.get_position()[::-1]: text.get_text() for text in axes.texts if text.get_text() != "made from"}
    for (column, of), (row, name) in itertools.product(enumerate(TABLE.values()), enumerate(of_first())):
        assert float(written[row, column]) == pytest.approx(of[name], rel=5e-3)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(of_first())
    assert [label.get_text().replace("\n", "") for label in axes.get_xticklabels()] == list(TABLE)


def of_first() -> dict[str, float]:
    return TABLE["ResNet-50"]


def test_the_best_that_was_made_is_framed_and_real_data_is_not() -> None:
    axes = transfer_matrix(TABLE, measure="loss", best="low").axes[0]
    assert _framed(axes) == {(1, 0), (2, 1)}
    bold = {text.get_position()[::-1] for text in axes.texts if text.get_fontweight() == "bold"}
    assert bold == _framed(axes)


def test_where_high_is_good_the_highest_is_framed_and_the_lowest_dark() -> None:
    accuracy = {"a": {"zeroq": 60.0, "mixmix": 96.0}, "b": {"zeroq": 70.0, "mixmix": 12.0}}
    axes = transfer_matrix(accuracy, measure="accuracy (%)", best="high").axes[0]
    assert _framed(axes) == {(1, 0), (0, 1)}
    light = _light(axes)
    assert light[1, 0] > light[0, 0] > light[1, 1]
    assert light[0, 1] == pytest.approx(light[1, 0])


@pytest.mark.parametrize("best", ["low", "high"])
def test_two_equals_are_both_framed(best: str) -> None:
    axes = transfer_matrix({"a": {"zeroq": 1.0, "dsg": 1.0}}, measure="x", best=best).axes[0]  # type: ignore[arg-type]
    assert _framed(axes) == {(0, 0), (1, 0)}


def test_worse_is_darker_and_a_column_s_unit_does_not_count() -> None:
    light = _light(transfer_matrix(TABLE, measure="loss", best="low").axes[0])
    for column, of in enumerate(TABLE.values()):
        order = sorted(range(3), key=lambda row, of=of: list(of.values())[row])  # type: ignore[misc]
        assert list(light[order, column]) == sorted(light[:, column], reverse=True)
    assert light[0, 0] == pytest.approx(light[0, 1])
    scaled = {"ResNet-50": {k: 1000 * v for k, v in of_first().items()}, "MobileNetV2": TABLE["MobileNetV2"]}
    np.testing.assert_allclose(_light(transfer_matrix(scaled, measure="loss", best="low").axes[0]), light)


def test_what_hardly_differs_is_hardly_darker() -> None:
    light = _light(transfer_matrix({"a": {"zeroq": 100.0, "dsg": 101.0}}, measure="x", best="low").axes[0])
    assert 0 < light[0, 0] - light[1, 0] < 0.05


@pytest.mark.parametrize("columns", [1, 3, 6])
@pytest.mark.parametrize("rows", [1, 12])
def test_words_stay_inside_and_apart(columns: int, rows: int) -> None:
    names = [f"zeroq from digits/mobilenet_{row}" for row in range(rows)]
    numbers = {f"torchvision/mobilenet_v2_{c}": dict.fromkeys(names, 1234.5 * 0.1**c) for c in range(columns)}
    figure = transfer_matrix(numbers, measure="BatchNorm loss (MixMix, eq. 2)", best="low")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    words = [*axes.texts, *axes.get_yticklabels(), *axes.get_xticklabels(), *figure.axes[1].texts]
    boxes = [text.get_window_extent() for text in words]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)
    assert all(not one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_names_of_rows_have_the_colour_of_their_source() -> None:
    labels = transfer_matrix(TABLE, measure="loss", best="low").axes[0].get_yticklabels()
    assert [to_hex(label.get_color()) for label in labels] == [color_of(name) for name in of_first()]


def test_the_title_tells_what_serves_most_networks() -> None:
    assert transfer_matrix(TABLE, measure="x", best="low").get_suptitle() == "No set of images is best for two networks"
    mixed = {name: {"mixmix": 0.02, **of} for name, of in TABLE.items()}
    assert transfer_matrix(mixed, measure="x", best="low").get_suptitle() == "mixmix is best for 2 of 2 networks"
    one = transfer_matrix({"vgg": {"zeroq": 1.0, "dsg": 2.0}}, measure="x", best="low")
    assert one.get_suptitle() == "For vgg, zeroq is best"


def test_zeros_are_drawn() -> None:
    to_png(transfer_matrix({"a": {"zeroq": 0.0, "dsg": 1.0}, "b": {"zeroq": 0.0, "dsg": 0.0}}, measure="x", best="low"))
    to_png(transfer_matrix({"a": {"real": 0.5}}, measure="x", best="high"))


def test_numbers_that_make_no_matrix_are_refused() -> None:
    with pytest.raises(DataError, match="0 x 0 numbers"):
        transfer_matrix({}, measure="x", best="low")
    with pytest.raises(DataError, match="1 x 7 numbers"):
        transfer_matrix({str(c): {"zeroq": 1.0} for c in range(7)}, measure="x", best="low")
    with pytest.raises(DataError, match=r"'b' judges \['dsg'\]"):
        transfer_matrix({"a": {"zeroq": 1.0}, "b": {"dsg": 1.0}}, measure="x", best="low")
    for broken in (-1.0, float("nan")):
        with pytest.raises(DataError, match="expected numbers of zero or more"):
            transfer_matrix({"a": {"zeroq": broken}}, measure="x", best="low")

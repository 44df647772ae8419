"""Every share stands at its end of its bar, and the outline where the second image is."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.figures import mixed_opinions, to_png
from dfqlab.figures.style import COLORS, INK, RULE

BLUE, YELLOW = (0, 0, 255), (255, 255, 0)
OPINIONS = {"resnet": (0.55, 0.2), "vgg": (0.03, 0.9)}


def example(
    box: tuple[int, int, int, int] = (2, 6, 1, 5), size: tuple[int, int] = (8, 8)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A blue image, a yellow one, a mask from top to bottom and from left to right, and what they make."""
    top, bottom, left, right = box
    first, second = ((torch.tensor(color) / 255).reshape(3, 1, 1).expand(3, *size) for color in (BLUE, YELLOW))
    mask = torch.zeros(size)
    mask[top:bottom, left:right] = 1
    return first, second, mask, torch.where(mask > 0, second, first)


def drawn(
    labels: tuple[str, str] = ("3", "7"), opinions: dict[str, tuple[float, float]] = OPINIONS, title: str | None = None
) -> Figure:
    return mixed_opinions(*example(), labels, opinions, title=title)


def words(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def bars(figure: Figure) -> list[dict[str, tuple[float, float]]]:
    """From where to where each colour reaches, for each bar from top to bottom."""
    patches = figure.axes[0].patches
    return [
        {to_hex(bar.get_facecolor()): (bar.get_x(), bar.get_x() + bar.get_width()) for bar in patches[at : at + 3]}
        for at in range(0, len(patches), 3)
    ]


def test_the_first_class_begins_at_the_left_and_the_second_ends_at_the_right() -> None:
    beta = 16 / 64
    for bar, (one, other) in zip(bars(drawn()), [(1 - beta, beta), *OPINIONS.values()], strict=True):
        assert bar[INK] == pytest.approx((0, 100 * one))
        assert bar[RULE] == pytest.approx((100 * one, 100 * (1 - other)))
        assert bar[COLORS["mixmix"]] == pytest.approx((100 * (1 - other), 100))


def test_names_stand_before_their_bars_and_percentages_in_them_where_they_fit() -> None:
    axes = drawn().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["the label", "resnet", "vgg"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "from top to bottom"
    told = [(round(text.get_position()[1]), text.get_text()) for text in axes.texts]
    assert told == [(0, "75 %"), (0, "25 %"), (1, "55 %"), (1, "25 %"), (1, "20 %"), (2, "7 %"), (2, "90 %")]


def test_a_percentage_stands_inside_its_part_of_the_bar() -> None:
    figure = drawn(opinions={str(share): (share / 100, 0.5) for share in range(1, 14)})
    figure.draw_without_rendering()
    axes = figure.axes[0]
    parts = [bar.get_window_extent() for bar in axes.patches]
    assert len(axes.texts) < len([part for part in parts if part.width > 0]), "some do not fit"
    for text in axes.texts:
        box = text.get_window_extent()
        inside = [part for part in parts if part.x0 <= box.x0 and box.x1 <= part.x1]
        assert any(part.y0 <= box.y0 and box.y1 <= part.y1 for part in inside), text.get_text()


def test_each_colour_is_named_over_its_end_of_the_bars() -> None:
    key = {text.get_text(): text for text in drawn().axes[1].texts}
    assert set(key) == {"■ 3", "any other", "■", "7 ■"}
    places = [key[word].get_position()[0] for word in ("■ 3", "any other", "7 ■")]
    assert places == sorted(places)
    assert to_hex(key["■ 3"].get_color()) == INK
    assert to_hex(key["7 ■"].get_color()) == COLORS["mixmix"]
    assert to_hex(key["■"].get_color()) == RULE


def test_the_mixed_image_stands_between_the_two_that_it_is_made_of() -> None:
    images = sorted(drawn().axes[2].images, key=lambda image: image.get_extent()[0])
    colors = [{tuple(pixel) for pixel in np.asarray(image.get_array())[5:-5, 5:-5].reshape(-1, 3)} for image in images]
    assert colors == [{BLUE}, {BLUE, YELLOW}, {YELLOW}]
    assert words(drawn())[-5:] == ["first", "mixed", "second", "→", "←"]


@pytest.mark.parametrize("size", [(8, 8), (12, 6), (7, 21)])
@pytest.mark.parametrize("box", [(2, 6, 1, 5), (0, 7, 0, 6), (6, 7, 0, 1)])
def test_the_outline_is_drawn_around_the_second_image(box: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    axes = mixed_opinions(*example(box, size), ("3", "7"), OPINIONS).axes[2]
    (mixed,) = [
        image for image in axes.images if len(np.unique(np.asarray(image.get_array()).reshape(-1, 3), axis=0)) == 3
    ]
    left, _, _, top = mixed.get_extent()
    rows, columns = np.nonzero((np.asarray(mixed.get_array()) == YELLOW).all(axis=2))
    (outline,) = axes.patches
    assert outline.get_x() == pytest.approx(left + columns.min())
    assert outline.get_x() + outline.get_width() == pytest.approx(left + columns.max() + 1)
    assert outline.get_y() == pytest.approx(top + rows.min())
    assert outline.get_y() + outline.get_height() == pytest.approx(top + rows.max() + 1)
    assert to_hex(outline.get_edgecolor()) == COLORS["mixmix"]


def test_a_mask_of_nothing_has_no_outline_and_asks_for_the_first_class_alone() -> None:
    figure = mixed_opinions(*example((3, 3, 3, 3)), ("3", "7"), OPINIONS)
    assert not figure.axes[2].patches
    assert bars(figure)[0][INK] == pytest.approx((0, 100))


def test_a_mask_may_be_boolean() -> None:
    first, second, mask, mixed = example()
    assert to_png(mixed_opinions(first, second, mask.bool(), mixed, ("3", "7"), OPINIONS)) == to_png(drawn())


def test_two_images_of_one_class_ask_for_that_class_alone() -> None:
    figure = drawn(("3", "3"), {"resnet": (0.8, 0.0)})
    asked, seen = bars(figure)
    assert asked[INK] == pytest.approx((0, 100))
    assert (seen[INK], seen[RULE]) == (pytest.approx((0, 80)), pytest.approx((80, 100)))
    assert [text.get_text() for text in figure.axes[1].texts] == ["■ 3", "any other", "■"]
    assert figure.get_suptitle() == "The label gives 100 % to 3, the network 80 %"


def test_the_title_tells_what_the_label_and_the_networks_give_to_the_second_class() -> None:
    assert drawn().get_suptitle() == "The label gives 25 % to 7, networks 20 to 90 %"
    assert drawn(opinions={"vgg": (0.0, 0.9)}).get_suptitle() == "The label gives 25 % to 7, the network 90 %"
    alike = {"vgg": (0.0, 0.9), "resnet": (0.1, 0.9)}
    assert drawn(opinions=alike).get_suptitle() == "The label gives 25 % to 7, networks 90 %"
    assert drawn(title="A sentence").get_suptitle() == "A sentence"


@pytest.mark.parametrize(
    ("labels", "networks"),
    [(("3", "7"), 1), (("automobile", "airplane"), 3), (("African hunting dog, Lycaon pictus", "golden retriever"), 6)],
)
def test_nothing_overlaps_or_leaves_the_picture(labels: tuple[str, str], networks: int) -> None:
    opinions = {f"torchvision/mobilenet_v3_large_{n}"[n:]: (0.1 * n, 0.3) for n in range(networks)}
    for size in ((8, 8), (64, 40), (5, 17)):
        figure = mixed_opinions(*example((0, 5, 0, 5), size), labels, opinions)
        figure.draw_without_rendering()
        axes, _, above = figure.axes
        boxes = [text.get_window_extent() for part in figure.axes for text in part.texts]
        boxes += [label.get_window_extent() for label in (*axes.get_yticklabels(), *axes.get_xticklabels())]
        boxes += [image.get_window_extent() for image in above.images]
        boxes.append(axes.xaxis.label.get_window_extent())
        assert all(not one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)
        title = figure.texts[0].get_window_extent()
        assert title.x1 <= figure.bbox.x1
        assert title.y0 >= max(box.y1 for box in boxes)


def test_its_places_do_not_move_with_what_is_seen() -> None:
    figures = [drawn(opinions={"resnet": (share, 0.0), "vgg": (0.0, share)}) for share in (0.0, 0.345, 1.0)]
    assert len({tuple(figure.get_size_inches()) for figure in figures}) == 1
    assert len({tuple(axes.get_position().bounds for axes in figure.axes) for figure in figures}) == 1


@pytest.mark.parametrize(
    ("opinions", "told"),
    [
        ({}, "no opinions"),
        ({"vgg": (0.7, 0.4)}, r"'vgg' gives \(0.7, 0.4\)"),
        ({"resnet": (0.5, 0.5), "vgg": (-0.1, 0.4)}, "'vgg' gives"),
        ({"vgg": (float("nan"), 0.4)}, "expected the probabilities of two classes"),
    ],
)
def test_what_are_no_opinions_is_refused(opinions: dict[str, tuple[float, float]], told: str) -> None:
    with pytest.raises(DataError, match=told):
        drawn(opinions=opinions)


@pytest.mark.traces  # a shape check would catch these before we answer
def test_images_that_do_not_go_together_are_refused() -> None:
    first, second, mask, mixed = example()
    for images in (
        (first, second[:, :4], mask, mixed),
        (first, second, mask[:4], mixed),
        (first, second, mask, mixed[:1]),
        (first[None], second[None], mask[None], mixed[None]),
    ):
        with pytest.raises(DataError, match="all of one size"):
            mixed_opinions(*images, ("3", "7"), OPINIONS)
    with pytest.raises(DataError, match="'vgg' gives"):
        mixed_opinions(*example(), ("3", "7"), {"vgg": (0.1, 0.2, 0.3)})  # type: ignore[dict-item]


def test_a_mask_that_is_no_box_is_refused() -> None:
    first, second, mask, mixed = example()
    with pytest.raises(DataError, match="1 inside one box"):
        mixed_opinions(first, second, mask / 2, mixed, ("3", "7"), OPINIONS)

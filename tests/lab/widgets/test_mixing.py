"""A box, two images and what networks see: one that tells the share of bright pixels, so that all is known."""

import itertools
import math
import re

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import dfqlab.lab.widgets.mixing as widget
from dfqlab.errors import ConfigurationError, TeacherError
from dfqlab.lab.panels import Explorer
from dfqlab.lab.widgets import mixing_box
from dfqlab.teachers import Teacher

HIGH, WIDE = 6, 8
NAMES = ("cat", "dog", "owl")


def network(name: str, factor: float = 1.0, classes: int = 3) -> Teacher:
    """Whose logits are the mean over all pixels, times `factor`, twice that, and so on."""
    head = nn.Linear(1, classes, bias=False)
    head.weight.data = factor * torch.arange(1.0, classes + 1).reshape(-1, 1)
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    return Teacher.from_module(module, size=(1, HIGH, WIDE), mean=[0.0], std=[1.0], classes=NAMES[:classes], name=name)


def images() -> tuple[Tensor, Tensor]:
    """Two of each class, in an order in which the first of each is not at its own number."""
    pixels = torch.rand(6, 1, HIGH, WIDE, generator=torch.Generator().manual_seed(0))
    return pixels, torch.tensor([2, 0, 0, 2, 1, 1])


FIRST_OF = {"cat": 1, "dog": 4, "owl": 0}


def explorer(*teachers: Teacher) -> Explorer:
    return mixing_box(*images(), teachers or (network("near"), network("far", -4.0)))


class Opinions:
    """Stands in for the figure and keeps what it was asked to draw."""

    def __call__(
        self,
        first: Tensor,
        second: Tensor,
        mask: Tensor,
        mixed: Tensor,
        labels: tuple[str, str],
        opinions: dict[str, tuple[float, float]],
    ) -> Figure:
        self.first, self.second, self.mask, self.mixed = first, second, mask, mixed
        self.labels, self.opinions = labels, opinions
        return Figure(figsize=(0.1, 0.1))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Opinions:
    opinions = Opinions()
    monkeypatch.setattr(widget, "mixed_opinions", opinions)
    return opinions


def seen(mixed: Tensor, factor: float) -> list[float]:
    """What the network says, by hand."""
    mean = float(mixed.double().mean())
    parts = [math.exp(factor * mean * number) for number in (1, 2, 3)]
    return [part / sum(parts) for part in parts]


def test_every_value_of_every_control_is_drawn() -> None:
    one = explorer()
    view = one.view()
    assert list(one.controls) == ["first", "second", "width", "height", "across", "down", "paste"]
    for name, control in one.controls.items():
        step = 5 if name in ("across", "down") else 3 if name in ("width", "height") else 1
        for position in control.positions[::step]:
            view.controls[name].value = position
            assert view.error is None, (name, position)
            assert "% of the label is" in view.page.value or "all of the label is" in view.page.value


def test_the_box_lies_where_the_controls_say_and_always_inside(drawn: Opinions) -> None:
    one = explorer()
    sides = itertools.product((1, 3, WIDE), (1, 4, HIGH), (0, 30, 50, 100), (0, 70, 100))
    for width, height, across, down in sides:
        one.drawing(width=width, height=height, across=across, down=down)
        rows, columns = drawn.mask.nonzero(as_tuple=True)
        assert drawn.mask.sum() == width * height
        assert (int(columns.max() - columns.min()) + 1, int(rows.max() - rows.min()) + 1) == (width, height)
        assert abs(int(columns.min()) - across / 100 * (WIDE - width)) <= 0.5
        assert abs(int(rows.min()) - down / 100 * (HIGH - height)) <= 0.5


def test_the_first_image_of_each_class_is_shown(drawn: Opinions) -> None:
    one = explorer()
    pixels, _ = images()
    for first, second in itertools.product(NAMES, NAMES):
        one.drawing(first=first, second=second)
        assert torch.equal(drawn.first, pixels[FIRST_OF[first]])
        assert torch.equal(drawn.second, pixels[FIRST_OF[second]])
        assert drawn.labels == (first, second)


def test_the_whole_second_image_is_in_the_box_or_what_lies_there_and_the_first_around_it(drawn: Opinions) -> None:
    one = explorer()
    values = {"first": "owl", "second": "dog", "width": 4, "height": 3, "across": 100, "down": 0}
    one.drawing(**values, paste="resize")
    halved = drawn.second.reshape(1, 3, 2, 4, 2).mean((2, 4))  # halving bilinearly is the mean of two by two
    torch.testing.assert_close(drawn.mixed[:, :3, 4:], halved)
    assert torch.equal(drawn.mixed[:, drawn.mask == 0], drawn.first[:, drawn.mask == 0])
    one.drawing(**values, paste="cut")
    assert torch.equal(drawn.mixed, torch.where(drawn.mask > 0, drawn.second, drawn.first))


def test_opinions_are_the_probabilities_of_the_two_classes(drawn: Opinions) -> None:
    explorer().drawing(first="owl", second="cat", width=7, height=5)
    assert list(drawn.opinions) == ["near", "far"]
    for name, factor in (("near", 1.0), ("far", -4.0)):
        shares = seen(drawn.mixed, factor)
        assert drawn.opinions[name] == pytest.approx((shares[2], shares[0]), rel=1e-5)


def test_the_sentence_says_what_the_picture_shows(drawn: Opinions) -> None:
    sentence = explorer().drawing(first="cat", second="dog", width=5, height=3).sentence
    assert sentence.startswith("A box of 5 x 3 pixels: 31 % of the label is dog, 69 % is cat; near sees ")
    told = re.findall(r"(\w+) sees (\d+) % of cat and (\d+) % of dog", sentence)
    assert [name for name, *_ in told] == ["near", "far"]
    for (_, *percent), factor in zip(told, (1.0, -4.0), strict=True):
        assert [int(number) for number in percent] == pytest.approx(
            [100 * p for p in seen(drawn.mixed, factor)[:2]], abs=0.51
        )


def test_two_images_of_one_class_are_asked_for_that_class_alone(drawn: Opinions) -> None:
    sentence = explorer(network("near")).drawing(first="owl", second="owl").sentence
    share = seen(drawn.mixed, 1.0)[2]
    assert drawn.opinions == {"near": (pytest.approx(share, rel=1e-5), 0.0)}
    assert sentence == f"A box of 4 x 3 pixels: all of the label is owl; near sees {100 * share:.0f} % of it."


def test_the_picture_and_the_sentence_say_the_same() -> None:
    drawing = explorer().drawing(first="cat", second="dog", width=8, height=3)
    assert str(drawing.figure.get_suptitle()).startswith("The label gives 50 % to dog, networks ")
    shares = sorted(int(share) for share in re.findall(r"and (\d+) % of dog", drawing.sentence))
    assert f"networks {shares[0]} to {shares[1]} %" in drawing.figure.get_suptitle()


def test_the_picture_does_not_jump() -> None:
    one = explorer()
    pictures = [one.drawing(), one.drawing(width=8, height=6), one.drawing(first="owl", second="owl", paste="cut")]
    assert len({picture.html for picture in pictures}) == 3
    assert len({tuple(picture.figure.get_size_inches()) for picture in pictures}) == 1


def test_nothing_of_it_has_a_gradient(drawn: Opinions) -> None:
    pixels, labels = images()
    mixing_box(pixels.requires_grad_(), labels, [network("near")]).drawing()
    assert not drawn.mixed.requires_grad


def test_classes_of_which_there_are_no_images_cannot_be_chosen() -> None:
    pixels, labels = images()
    one = mixing_box(pixels[labels != 1], labels[labels != 1], [network("near")])
    assert one.controls["first"].positions == one.controls["second"].positions == ("cat", "owl")
    assert (one.controls["first"].value, one.controls["second"].value) == ("cat", "owl")


def test_images_that_cannot_be_mixed_are_refused() -> None:
    pixels, labels = images()
    with pytest.raises(ConfigurationError, match=r"labels \[0\]: expected two or more of the classes 0 to 2"):
        mixing_box(pixels, torch.zeros_like(labels), [network("near")])
    for wrong in (labels + 1, labels - 1):
        with pytest.raises(ConfigurationError, match="of the classes 0 to 2"):
            mixing_box(pixels, wrong, [network("near")])
    with pytest.raises(TeacherError):
        mixing_box(pixels[..., 1:], labels, [network("near")])


def test_networks_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'near' 3, 'small' 2"):
        explorer(network("near"), network("small", classes=2))
    with pytest.raises(ConfigurationError, match="a name of its own"):
        explorer(network("near"), network("near", 2.0))
    with pytest.raises(ConfigurationError, match="no teachers"):
        mixing_box(*images(), [])

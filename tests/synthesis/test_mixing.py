"""Data mixing pixel by pixel, its labels and its boxes; and which teachers a batch is made from."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from dfqlab.errors import ConfigurationError
from dfqlab.synthesis.mixing import Box, DataMixing, Paste, draw_box, draw_teachers, mix_images, mix_labels

BOXES = [Box(0, 0, 7, 5), Box(2, 1, 3, 2), Box(6, 4, 1, 1), Box(0, 3, 7, 1), Box(4, 0, 2, 5)]
each_box = pytest.mark.parametrize("box", BOXES, ids=str)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Two batches of two images, 5 high and 7 wide, in float64."""
    first, second = torch.randn(2, 2, 3, 5, 7, generator=generator(), dtype=torch.float64)
    return first, second


def interpolation(wanted: int, given: int) -> np.ndarray:
    """The matrix of linear interpolation along one axis: the middle of each new pixel lies between two old ones."""
    matrix = np.zeros((wanted, given))
    for i in range(wanted):
        at = min(max((i + 0.5) * given / wanted - 0.5, 0), given - 1)
        low = int(at)
        high = min(low + 1, given - 1)
        matrix[i, low] += 1 - (at - low)
        matrix[i, high] += at - low
    return matrix


def test_the_reference_keeps_constants_and_doubles_pixels_by_the_known_quarters() -> None:
    assert np.allclose(interpolation(3, 7).sum(1), 1)
    assert interpolation(4, 2).tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]


@each_box
def test_equation_8_pixel_by_pixel(pair: tuple[Tensor, Tensor], box: Box) -> None:
    first, second = pair
    expected = first.numpy().copy()
    down, across = interpolation(box.height, 5), interpolation(box.width, 7)
    for k in range(2):
        for c in range(3):
            small = down @ second[k, c].numpy() @ across.T
            for i in range(box.height):
                for j in range(box.width):
                    expected[k, c, box.top + i, box.left + j] = small[i, j]
    mixed, beta = mix_images(first, second, box)
    torch.testing.assert_close(mixed, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)
    outside = torch.ones(5, 7, dtype=torch.bool)
    outside[box.top : box.top + box.height, box.left : box.left + box.width] = False
    assert torch.equal(mixed[..., outside], first[..., outside])
    assert beta == (35 - int(outside.sum())) / 35


@each_box
def test_cut_shows_what_the_second_image_has_at_that_place(pair: tuple[Tensor, Tensor], box: Box) -> None:
    first, second = pair
    expected = first.clone()
    inside = (..., slice(box.top, box.top + box.height), slice(box.left, box.left + box.width))
    expected[inside] = second[inside]
    mixed, beta = mix_images(first, second, box, "cut")
    assert torch.equal(mixed, expected)
    assert beta == mix_images(first, second, box)[1]


@pytest.mark.parametrize("paste", ["resize", "cut"])
def test_a_box_as_large_as_the_image_shows_the_second_image_alone(pair: tuple[Tensor, Tensor], paste: Paste) -> None:
    first, second = pair
    mixed, beta = mix_images(first, second, Box(0, 0, 7, 5), paste)
    torch.testing.assert_close(mixed, second, rtol=1e-12, atol=1e-12)
    assert beta == 1.0


@each_box
def test_the_gradient_reaches_the_first_image_outside_the_box_and_the_second_through_it(
    pair: tuple[Tensor, Tensor], box: Box
) -> None:
    first, second = (image.requires_grad_() for image in pair)
    upstream = torch.randn(2, 3, 5, 7, generator=generator(1), dtype=torch.float64)
    mixed, _ = mix_images(first, second, box)
    to_first, to_second = torch.autograd.grad(mixed, (first, second), upstream)
    inside = (..., slice(box.top, box.top + box.height), slice(box.left, box.left + box.width))
    expected = upstream.clone()
    expected[inside] = 0
    assert torch.equal(to_first, expected)
    down, across = interpolation(box.height, 5), interpolation(box.width, 7)
    transposed = torch.from_numpy(down.T @ upstream[inside].numpy() @ across)
    torch.testing.assert_close(to_second, transposed, rtol=1e-12, atol=1e-12)


def test_with_cut_the_gradient_reaches_the_second_image_in_the_box_alone(pair: tuple[Tensor, Tensor]) -> None:
    first, second = (image.requires_grad_() for image in pair)
    mixed, _ = mix_images(first, second, Box(2, 1, 3, 2), "cut")
    to_first, to_second = torch.autograd.grad(mixed.sum(), (first, second))
    expected = torch.zeros(2, 3, 5, 7, dtype=torch.float64)
    expected[..., 1:3, 2:5] = 1
    assert torch.equal(to_second, expected)
    assert torch.equal(to_first, 1 - expected)


@pytest.mark.parametrize("paste", ["resize", "cut"])
@pytest.mark.parametrize(
    "box",
    [Box(5, 0, 3, 2), Box(0, 4, 2, 2), Box(-1, 0, 3, 2), Box(0, -2, 3, 2), Box(1, 1, 0, 2), Box(1, 1, 2, 0)],
    ids=str,
)
def test_a_box_that_leaves_the_image_is_refused_with_its_numbers(
    pair: tuple[Tensor, Tensor], box: Box, paste: Paste
) -> None:
    said = rf"{box.width} x {box.height} pixels at \({box.left}, {box.top}\) does not lie in an image of 7 x 5"
    with pytest.raises(ConfigurationError, match=said):
        mix_images(*pair, box, paste)


def test_boxes_lie_inside_and_their_sides_are_uniform_and_independent() -> None:
    height, width, draws = 5, 7, 7000
    stream = generator(3)
    counted = np.zeros((height, width))
    places: set[Box] = set()
    for _ in range(draws):
        box = draw_box(height, width, stream)
        box.check_inside(height, width)
        counted[box.height - 1, box.width - 1] += 1
        places.add(box)
    expected = draws / (height * width)
    statistic = float(((counted - expected) ** 2 / expected).sum())
    assert statistic < chi2.ppf(0.999, height * width - 1)
    every = {
        Box(left, top, w, h)
        for w in range(1, width + 1)
        for h in range(1, height + 1)
        for left in range(width - w + 1)
        for top in range(height - h + 1)
    }
    assert places == every


def test_where_a_box_lies_is_uniform_among_the_places_it_fits() -> None:
    stream = generator(4)
    boxes = [draw_box(4, 6, stream) for _ in range(6000)]
    for side, place, size in (("width", "left", 6), ("height", "top", 4)):
        for length in range(1, size):
            found = [getattr(box, place) for box in boxes if getattr(box, side) == length]
            counted = np.bincount(found, minlength=size - length + 1)
            expected = len(found) / (size - length + 1)
            assert ((counted - expected) ** 2 / expected).sum() < chi2.ppf(0.9999, len(counted) - 1)


def test_labels_are_shares_that_sum_to_one() -> None:
    first, second = torch.tensor([0, 1, 2]), torch.tensor([1, 1, 0])
    for beta in np.linspace(0, 1, 36):
        shares = mix_labels(first, second, float(beta), classes=4)
        expected = torch.zeros(3, 4)
        for row, (a, b) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
            expected[row, a] += 1 - beta
            expected[row, b] += beta
        torch.testing.assert_close(shares, expected)
        torch.testing.assert_close(shares.sum(1), torch.ones(3))
        assert shares.dtype == torch.float32


# Of a batch


@pytest.mark.parametrize("paste", ["resize", "cut"])
def test_a_batch_is_mixed_in_one_box_and_labels_count_as_much_as_their_pixels(paste: Paste) -> None:
    """Images of one grey each say which of them a pixel came from."""
    n = 6
    images = torch.arange(1.0, n + 1)[:, None, None, None].expand(n, 2, 5, 7)
    labels = torch.arange(n)
    partners_seen, boxes_seen = set(), set()
    for seed in range(30):
        mixed, shares = DataMixing(paste)(images, labels, n, generator(seed))
        assert shares is not None
        greys = mixed.round().long() - 1
        torch.testing.assert_close(mixed, greys + 1.0)
        changed = (greys != labels[:, None, None, None]).any(0).any(0)
        partners = [int(grey[0][changed][0]) if changed.any() else i for i, grey in enumerate(greys)]
        assert not changed.any() or sorted(partners) == list(range(n))
        for i, partner in enumerate(partners):
            assert torch.equal(greys[i], torch.where(changed, partner, i).expand(2, 5, 7))
            expected = torch.zeros(n)
            beta = float(changed.sum()) / 35
            expected[i] += 1 - beta
            expected[partner] += beta
            torch.testing.assert_close(shares[i], expected)
        partners_seen.add(tuple(partners))
        boxes_seen.add(int(changed.sum()))
    assert len(partners_seen) > 25
    assert len(boxes_seen) > 10


def test_without_labels_images_are_mixed_all_the_same() -> None:
    images = torch.randn(4, 1, 6, 6, generator=generator())
    labels = torch.tensor([0, 1, 0, 1])
    mixed, none = DataMixing()(images, None, 2, generator(5))
    assert none is None
    assert torch.equal(mixed, DataMixing()(images, labels, 2, generator(5))[0])


def test_every_mixing_draws_from_its_generator_alone() -> None:
    images = torch.randn(4, 1, 6, 6, generator=generator())
    before = torch.get_rng_state()
    first, second = (DataMixing()(images, None, 2, generator(1))[0] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    stream = generator(1)
    assert torch.equal(DataMixing()(images, None, 2, stream)[0], first)
    assert not torch.equal(DataMixing()(images, None, 2, stream)[0], first)


@pytest.mark.traces  # a shape check would catch it before we answer
def test_a_way_to_paste_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="paste='crop': choose 'resize' or 'cut'"):
        DataMixing("crop")  # type: ignore[arg-type]


# Which teachers


@pytest.mark.parametrize(("available", "wanted"), [(5, 3), (4, 1), (4, 3)])
def test_teachers_are_drawn_without_repetition_and_every_choice_comes_up_evenly(available: int, wanted: int) -> None:
    stream, draws = generator(6), 3000
    counted = dict.fromkeys(combinations(range(available), wanted), 0)
    for _ in range(draws):
        counted[draw_teachers(available, wanted, stream)] += 1  # a KeyError would be a repetition, or a disorder
    expected = draws / comb(available, wanted)
    statistic = sum((count - expected) ** 2 / expected for count in counted.values())
    assert min(counted.values()) > 0
    assert statistic < chi2.ppf(0.999, len(counted) - 1)


def test_one_generator_draws_the_same_teachers() -> None:
    first, second = ([draw_teachers(9, 4, stream) for _ in range(5)] for stream in (generator(7), generator(7)))
    assert first == second
    assert len(set(first)) > 1


@pytest.mark.parametrize("wanted", [None, 4])
def test_all_teachers_are_taken_without_a_draw(wanted: int | None) -> None:
    stream = generator()
    before = stream.get_state()
    assert draw_teachers(4, wanted, stream) == (0, 1, 2, 3)
    assert torch.equal(stream.get_state(), before)

"""Augmentation: what each part may do to images, how often it does it, and from whose randomness."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2, kstest
from torch import Tensor

from dfqlab.errors import ConfigurationError
from dfqlab.synthesis.augmentation import Augmentation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 2, 8, 6, generator=generator(), dtype=torch.float64)


def ramps(n: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Images whose pixels are their own coordinates, as shares of half the image from its middle: across, and down."""
    across = (2 * torch.arange(width, dtype=torch.float64) + 1) / width - 1
    down = (2 * torch.arange(height, dtype=torch.float64) + 1) / height - 1
    return across.expand(n, 1, height, width), down[:, None].expand(n, 1, height, width)


def fit(found: Tensor, coordinates: Tensor) -> tuple[float, float, float]:
    """Slope and offset of the line through (coordinates, found), and how far anything lies from it."""
    slope, offset = np.polyfit(coordinates.numpy().ravel(), found.numpy().ravel(), 1)
    return float(slope), float(offset), float((found - (slope * coordinates + offset)).abs().max())


def test_nothing_asked_for_is_nothing_done(images: Tensor) -> None:
    stream = generator()
    before = stream.get_state()
    assert torch.equal(Augmentation()(images, stream), images)
    assert torch.equal(stream.get_state(), before)


def test_jitter_rolls_the_batch_by_so_many_pixels_both_axes_apart(images: Tensor) -> None:
    """Every offset of either axis comes up, all pairs of them evenly, and no other."""
    rolled = {
        (down, right): torch.roll(images, (down, right), (2, 3)) for down in range(-2, 3) for right in range(-2, 3)
    }
    stream, counted = generator(1), Counter[tuple[int, int]]()
    draws = 1000
    for _ in range(draws):
        found = Augmentation(jitter=2)(images, stream)
        counted[next(offset for offset, image in rolled.items() if torch.equal(found, image))] += 1
    assert set(counted) == set(rolled)
    expected = draws / 25
    assert sum((count - expected) ** 2 / expected for count in counted.values()) < chi2.ppf(0.999, 24)


@pytest.mark.parametrize("flip", [0.0, 0.25, 0.5, 1.0])
def test_the_batch_is_mirrored_left_to_right_as_often_as_asked(images: Tensor, flip: float) -> None:
    stream, draws, count = generator(2), 800, 0
    mirrored = torch.stack([images[..., j] for j in reversed(range(6))], -1)
    for _ in range(draws):
        found = Augmentation(flip=flip)(images, stream)
        count += torch.equal(found, mirrored)
        assert torch.equal(found, mirrored) or torch.equal(found, images)
    low, high = binom.ppf([0.0005, 0.9995], draws, flip) if 0 < flip < 1 else (flip * draws, flip * draws)
    assert low <= count <= high


def test_a_crop_that_keeps_all_of_the_area_changes_nothing(images: Tensor) -> None:
    found = Augmentation(crop=1.0, smallest_crop=1.0)(images, generator())
    torch.testing.assert_close(found, images, rtol=1e-6, atol=1e-6)


def test_a_crop_is_a_window_inside_the_image_enlarged_as_much_in_both_directions() -> None:
    """On a ramp it is a line: its slope is the window's side, its offset the window's middle."""
    n, height, width, smallest = 400, 16, 24, 0.3
    across, down = ramps(n, height, width)
    augmentation = Augmentation(crop=1.0, smallest_crop=smallest)
    shown_across, shown_down = augmentation(across, generator(3)), augmentation(down, generator(3))
    areas, middles = [], []
    for k in range(n):
        assert shown_across[k].abs().max() <= across.abs().max() + 1e-6
        assert shown_down[k].abs().max() <= down.abs().max() + 1e-6
        # Where the window touches the border, bilinear interpolation continues the outermost pixel: leave that out.
        slopes, offsets = [], []
        for shown, ramp, axis in ((shown_across, across, 3), (shown_down, down, 2)):
            middle = slice(ramp.shape[axis] // 4, -(ramp.shape[axis] // 4))
            index = (k, slice(None), slice(None), middle) if axis == 3 else (k, slice(None), middle)
            slope, offset, distance = fit(shown[index], ramp[index])
            assert distance < 1e-5
            assert abs(offset) + slope <= 1 + 1e-5
            slopes.append(slope)
            offsets.append(offset)
        assert slopes[0] == pytest.approx(slopes[1], abs=1e-5)
        areas.append(slopes[0] ** 2)
        middles.append([(offset / (1 - slope) + 1) / 2 for slope, offset in zip(slopes, offsets, strict=True)])
    places = np.array(middles)
    assert kstest(areas, "uniform", (smallest, 1 - smallest)).pvalue > 0.001
    assert kstest(places[:, 0], "uniform").pvalue > 0.001
    assert kstest(places[:, 1], "uniform").pvalue > 0.001
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.2


def test_each_image_is_cropped_or_not_for_itself() -> None:
    images = torch.randn(1, 1, 8, 8, generator=generator(), dtype=torch.float64).expand(600, -1, -1, -1)
    found = Augmentation(crop=0.3)(images, generator(4))
    cropped = int(((found - images).abs().amax((1, 2, 3)) > 1e-3).sum())
    low, high = binom.ppf([0.0005, 0.9995], 600, 0.3)
    assert low <= cropped <= high


def test_all_together_is_differentiable_in_the_images(images: Tensor) -> None:
    augmentation = Augmentation(jitter=2, flip=1.0, crop=1.0)
    assert torch.autograd.gradcheck(lambda x: augmentation(x, generator(5)), (images.requires_grad_(),))


def test_size_and_type_stay() -> None:
    for dtype in (torch.float32, torch.float64):
        found = Augmentation(jitter=3, flip=0.5, crop=0.5)(
            torch.rand(2, 3, 5, 7, dtype=dtype, generator=generator()), generator()
        )
        assert (found.shape, found.dtype) == ((2, 3, 5, 7), dtype)


def test_nothing_is_drawn_but_from_the_generator(images: Tensor) -> None:
    augmentation = Augmentation(jitter=3, flip=0.5, crop=0.5)
    before = torch.get_rng_state()
    first = augmentation(images, generator(6))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(augmentation(images, generator(6)), first)
    assert not torch.equal(augmentation(images, generator(7)), first)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("jitter", -1, "expected a number of pixels"),
        ("flip", 1.1, r"expected a probability in \[0, 1\]"),
        ("flip", -0.1, r"expected a probability in \[0, 1\]"),
        ("crop", 2.0, r"expected a probability in \[0, 1\]"),
        ("smallest_crop", 0.0, r"expected a share of the area in \(0, 1\]"),
        ("smallest_crop", 1.5, r"expected a share of the area in \(0, 1\]"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(setting: str, value: float, said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{setting}={value}: {said}"):
        Augmentation(**{setting: value})  # type: ignore[arg-type]

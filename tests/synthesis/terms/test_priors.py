"""Priors of images: each against a loop, another library or a theorem."""

from math import ceil, pi, sqrt

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from dfqlab.errors import ConfigurationError
from dfqlab.objective import ImageTerm
from dfqlab.synthesis.terms import BlurPrior, L2Prior, LowPassPrior, TotalVariation

PRIORS = {
    "total variation l1": TotalVariation("l1"),
    "total variation l2": TotalVariation("l2"),
    "l2": L2Prior(),
    "blur": BlurPrior(),
    "wide blur": BlurPrior(2.5),
    "low pass": LowPassPrior(),
    "lower pass": LowPassPrior(0.2),
}
each_prior = pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)


@pytest.fixture
def images() -> Tensor:
    """Three images of two colours, not square, in normalised units."""
    return torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def wave(height: int, width: int, down: int, right: int, phase: float = 0.4) -> Tensor:
    """One image, so many whole periods along each axis."""
    rows, columns = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)
    return torch.sin(2 * pi * (down * rows / height + right * columns / width) + phase)[None, None]


# What holds for each


@each_prior
def test_a_batch_of_copies_costs_what_one_costs(prior: ImageTerm, images: Tensor) -> None:
    one = float(prior.of_images(images[:1]))
    assert float(prior.of_images(images[:1].expand(4, -1, -1, -1))) == pytest.approx(one, rel=1e-12)


@each_prior
def test_a_batch_costs_the_mean_of_its_images(prior: ImageTerm, images: Tensor) -> None:
    alone = [float(prior.of_images(image[None])) for image in images]
    assert max(alone) > 1.01 * min(alone)
    found = prior.of_images(images)
    assert found.shape == ()
    assert float(found) == pytest.approx(np.mean(alone), rel=1e-12)


@each_prior
def test_the_gradient_is_that_of_finite_differences(prior: ImageTerm, images: Tensor) -> None:
    assert torch.autograd.gradcheck(prior.of_images, (images.requires_grad_(),))


@each_prior
def test_float32_says_what_float64_says(prior: ImageTerm, images: Tensor) -> None:
    found = prior.of_images(images.float())
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(prior.of_images(images)), rel=1e-5)


@each_prior
@pytest.mark.parametrize("grey", [0.0, 0.7])
def test_a_flat_image_has_a_finite_gradient_and_all_but_the_norm_leave_it(prior: ImageTerm, grey: float) -> None:
    x = torch.full((2, 3, 8, 8), grey, requires_grad=True)
    found = prior.of_images(x)
    (gradient,) = torch.autograd.grad(found, x)
    pulled = isinstance(prior, L2Prior) and grey != 0
    assert torch.isfinite(found)
    assert float(found.detach()) == pytest.approx(grey * sqrt(3 * 64) if pulled else 0, abs=1e-5)
    expected = torch.full_like(x, grey / (grey * sqrt(3 * 64)) / 2 if pulled else 0)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


# Total variation


def differences(image: np.ndarray, down: int, right: int) -> list[float]:
    """Of each pixel and the one so many rows below and columns to the right of it."""
    colours, height, width = image.shape
    return [
        image[c, i + down, j + right] - image[c, i, j]
        for c in range(colours)
        for i in range(height - down)
        for j in range(width)
        if 0 <= j + right < width
    ]


def test_total_variation_l2_is_the_sum_of_four_norms_of_each_image(images: Tensor) -> None:
    expected = [
        sum(sqrt(sum(d * d for d in differences(image, *to))) for to in ((1, 0), (0, 1), (1, 1), (1, -1)))
        for image in images.numpy()
    ]
    assert float(TotalVariation("l2").of_images(images)) == pytest.approx(np.mean(expected), rel=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (2, 2)])
def test_the_smallest_images_have_a_variation_and_its_gradient(size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(TotalVariation("l2").of_images, (images.requires_grad_(),))


def test_total_variation_l1_is_a_mean_over_pixels_of_differences_down_and_right(images: Tensor) -> None:
    expected = [
        sum(abs(d) for to in ((1, 0), (0, 1)) for d in differences(image, *to)) / 35 for image in images.numpy()
    ]
    assert float(TotalVariation("l1").of_images(images)) == pytest.approx(np.mean(expected), rel=1e-12)


def test_a_norm_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="norm='L2': choose 'l1' or 'l2'"):
        TotalVariation("L2")


# The norm


def test_the_l2_prior_is_the_norm_of_each_image_over_pixels_and_colours(images: Tensor) -> None:
    expected = np.mean([np.linalg.norm(image.ravel()) for image in images.numpy()])
    assert float(L2Prior().of_images(images)) == pytest.approx(expected, rel=1e-12)


# Blur


@pytest.mark.parametrize("sigma", [0.4, 1.0, 1.5, 4.0])  # the widest reaches beyond the image
def test_the_blurred_image_is_that_of_scipy(images: Tensor, sigma: float) -> None:
    radius = ceil(3 * sigma)
    expected = np.stack(
        [[gaussian_filter(c, sigma, mode="nearest", radius=radius) for c in image] for image in images.numpy()]
    )
    prior = BlurPrior(sigma)
    torch.testing.assert_close(prior.blurred(images), torch.from_numpy(expected), rtol=1e-10, atol=1e-12)
    found = float(prior.of_images(images))
    assert found == pytest.approx(np.mean((images.numpy() - expected) ** 2), rel=1e-9)


@pytest.mark.parametrize("sigma", [0.0, -1.0])
def test_a_blur_of_no_width_is_refused(sigma: float) -> None:
    with pytest.raises(ConfigurationError, match=f"sigma={sigma}: expected a positive number of pixels"):
        BlurPrior(sigma)


# Low pass


@pytest.mark.parametrize("cutoff", [0.15, 0.5, 0.9])
def test_the_low_pass_prior_is_the_mean_square_of_what_a_sharp_filter_takes_away(images: Tensor, cutoff: float) -> None:
    """Parseval's theorem, the filter applied by numpy."""
    x = images.numpy()
    rows, columns = np.meshgrid(np.fft.fftfreq(5), np.fft.fftfreq(7), indexing="ij")
    taken = np.fft.ifft2(np.fft.fft2(x) * (np.sqrt(rows**2 + columns**2) > cutoff / 2))
    assert np.abs(taken.imag).max() < 1e-12
    assert float(LowPassPrior(cutoff).of_images(images)) == pytest.approx(np.mean(taken.real**2), rel=1e-9)


@pytest.mark.parametrize(("down", "right"), [(0, 3), (5, 0), (3, 4), (0, 4), (4, 4), (8, 0), (6, 7), (7, 12)])
@pytest.mark.parametrize("cutoff", [0.3, 0.55, 0.8])
def test_a_wave_below_the_cutoff_costs_nothing_and_one_above_it_all_its_energy(
    down: int, right: int, cutoff: float
) -> None:
    x = wave(16, 24, down, right)
    above = sqrt((down / 16) ** 2 + (right / 24) ** 2) > 0.5 * cutoff
    expected = float(x.square().mean()) if above else 0.0
    assert float(LowPassPrior(cutoff).of_images(x)) == pytest.approx(expected, abs=1e-12)


def test_the_highest_frequency_along_a_row_is_above_every_cutoff() -> None:
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 8, 8)
    assert float(LowPassPrior(0.999).of_images(stripes)) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("cutoff", [0.0, 1.0, -0.5])
def test_a_cutoff_that_keeps_all_or_nothing_is_refused(cutoff: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"cutoff={cutoff}: expected a share in \(0, 1\)"):
        LowPassPrior(cutoff)
